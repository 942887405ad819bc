"""The groups of a comparison's seeds, and their blind level. The whole of it: tests/e2e/test_compare.py."""

from pathlib import Path

import pytest

from trainer.compare.seeds import blind_levels, groups
from trainer.evaluation.exams import exams
from trainer.recipe.file import load


def test_seeds_are_trained_in_groups_of_the_size_given():
    assert groups([4, 0, 2, 3], 1) == [[0], [2], [3], [4]]
    assert groups([4, 0, 2], 2) == [[0, 2], [4]]
    assert groups([], 2) == []


def test_the_blind_level_is_the_mean_over_the_seeds_questions():
    recipe = load(Path("recipes/miniature/compare.toml"), ["evaluation.questions=24"])
    (first, *_), (second, *_) = (exams(recipe, draw=draw) for draw in (0, 1))
    assert first.blind != second.blind
    levels = blind_levels(recipe, [0, 1])
    assert list(levels) == ["text", "image", "video"]
    assert first.blind is not None
    assert second.blind is not None
    assert levels["text"] == pytest.approx((first.blind + second.blind) / 2)
