import numpy as np
import pytest

from tests.trainer.orchestration.told import overlap, step
from trainer.compare.answers import ResultAnswers
from trainer.compare.dynamics import correlation, pulls, series, students, sweep
from trainer.compare.standings import Standings
from trainer.recipe import MethodConfig


def compared(system: str, number: int, *branches: str, value: float = 0.95) -> dict:
    return overlap(number, *(f"{system}-{name}@{number}" for name in branches), value=value) | {"system": system}


def right(seed: int, system: str, row: str, share: float, exam: str = "text") -> ResultAnswers:
    return ResultAnswers(
        seed, system, row, exam, "greedy", (1.0,) * int(10 * share) + (0.0,) * (10 - int(10 * share)), 9.0, 0.0
    )


def test_a_point_is_the_mean_over_pairs_both_ways_and_capabilities():
    (point,) = series([compared("s2-copd3", 5, "text", "image")])
    assert (point.system, point.seed, point.phase, point.step) == ("copd3", 2, "opd", 5)
    assert point.overlap == pytest.approx(0.94)
    assert point.from_base == pytest.approx((0.93 + 0.94) / 2)
    assert point.kl == pytest.approx(0.02)


def test_a_branch_alone_has_no_pair():
    assert series([compared("s0-mixed3", 5, "only")]) == []


def test_gradients_of_a_mixed_branch_are_found_by_pair():
    told = step("s1-mixed3", 4, 0.5)
    told["metrics"] |= {"native/cosine:text:image": -0.25}
    (pull,) = pulls([told, step("s1-x-text", 4, 0.5)])
    assert (pull.system, pull.seed, pull.step, pull.pair, pull.cosine) == ("mixed3", 1, 4, "text - image", -0.25)


def test_a_pilots_student_is_read_against_its_teacher_as_it_was():
    answers = [right(0, "base", "", 0.2), right(0, "pilot", "text-20", 0.5), right(0, "x", "text@20", 0.8)]
    events = [compared("s0-x", 20, "text", "image", value=0.9)]
    (student,) = students(Standings(answers), events, "greedy")
    assert (student.capability, student.age) == ("text", 20)
    assert student.overlap == pytest.approx(0.88)
    assert student.gain == pytest.approx(0.3)
    assert student.absorbed == pytest.approx(0.5)


def test_a_teacher_that_is_not_ahead_has_nothing_to_absorb():
    answers = [right(0, "base", "", 0.5), right(0, "pilot", "text-20", 0.4), right(0, "x", "text@20", 0.5)]
    (student,) = students(Standings(answers), [compared("s0-x", 20, "text", "image")], "greedy")
    assert student.absorbed is None


def test_pearsons_r_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    found = correlation(x.tolist(), y.tolist())
    assert found is not None
    r, low, high = found
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert low < r < high
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(57))  # the closed form for normal x and y
    assert [low, high] == pytest.approx(fisher.tolist(), abs=0.06)
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_sweep_has_copd_in_its_place():
    answers = [right(0, "r1o4", "merged", 0.4), right(0, "copd3", "merged", 0.6), right(0, "r4o1", "merged", 0.5)]
    found = sweep(Standings(answers), MethodConfig(rlvr_steps=3, opd_steps=2), ["text"], "greedy")
    assert [(one.rlvr_steps, one.accuracy.mean) for one in found] == [(1, 0.4), (3, 0.6), (4, 0.5)]
    assert sweep(Standings(answers[1:2]), MethodConfig(), ["text"], "greedy") == []


def test_the_sweep_is_of_the_seeds_that_every_share_has():
    one_seed = [right(0, "r1o4", "merged", 0.4), right(0, "copd3", "merged", 0.6)]
    found = sweep(Standings([*one_seed, right(1, "copd3", "merged", 1.0)]), MethodConfig(), ["text"], "greedy")
    assert [one.accuracy.mean for one in found] == [0.4, 0.6]
    apart = Standings([one_seed[0], right(1, "copd3", "merged", 1.0)])
    assert sweep(apart, MethodConfig(), ["text"], "greedy") == []
