"""The choice among scales. Their accuracies by an engine: tests/engine and tests/e2e."""

from trainer.local.scales import best_scale


def test_of_scales_that_are_equally_good_the_nearest_to_1_is_best() -> None:
    assert best_scale({0.5: 0.7, 1.25: 0.7, 2.0: 0.6}) == 1.25
    assert best_scale({0.5: 0.7, 1.0: 0.7, 2.0: 0.8}) == 2.0
