from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.orchestration.run_events import overlap, step
from trainer.compare.answers import ResultAnswers
from trainer.compare.dynamics import correlation, pulls, series, students, sweep
from trainer.compare.standings import Standings
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig, MethodConfig
from trainer.recipe.file import load

COMPARISON = ComparisonConfig(seeds=3, systems=("mixed3", "copd3", "pilot"))
PLAN = make_plan(load(Path("recipes/miniature/compare.toml")).model_copy(update={"comparison": COMPARISON}))
BRANCHES = {segment.branch: segment for segment in PLAN.segments}


def compared(group: str, number: int, *capabilities: str, value: float = 0.95) -> dict[str, Any]:
    return overlap(number, *(f"{group}-{name}@{number}" for name in capabilities), value=value) | {"system": group}


def answers_of(seed: int, system: str, row: str, share: float) -> ResultAnswers:
    """Ten answers, of which a share is right."""
    right = int(10 * share)
    return ResultAnswers(seed, system, row, "text", "greedy", (1.0,) * right + (0.0,) * (10 - right), 9.0, 0.0)


def test_a_point_is_the_mean_over_pairs_both_ways_and_capabilities():
    (point,) = series([compared("s2-copd3", 5, "text", "image")], BRANCHES)
    assert (point.system, point.seed, point.phase, point.step) == ("copd3", 2, "opd", 5)
    assert point.overlap == pytest.approx(0.94)
    assert point.from_base == pytest.approx((0.93 + 0.94) / 2)
    assert point.kl == pytest.approx(0.02)


def test_a_branch_alone_has_no_pair():
    assert series([compared("s0-experts", 5, "text")], BRANCHES) == []


def test_seeds_that_are_not_shown_are_left_out():
    assert series([compared("s7-copd3", 5, "text", "image")], BRANCHES) == []


def test_gradients_of_a_mixed_branch_are_read_by_pair():
    event = step("s1-mixed3", 4, 0.5)
    event["metrics"] |= {"native/cosine:text:image": -0.25}
    (pull,) = pulls([event, step("s1-experts-text", 4, 0.5)], BRANCHES)
    assert (pull.system, pull.seed, pull.step, pull.pair, pull.cosine) == ("mixed3", 1, 4, "text - image", -0.25)


def test_a_pilots_student_is_read_against_its_teacher_as_it_was():
    answers = [
        answers_of(0, "base", "", 0.2),
        answers_of(0, "pilot", "text-20", 0.5),
        answers_of(0, "experts", "text@20", 0.8),
    ]
    events = [compared("s0-experts", 20, "text", "image", value=0.9)]
    (student,) = students(Standings(answers), events, BRANCHES, "greedy")
    assert (student.capability, student.age) == ("text", 20)
    assert student.overlap == pytest.approx(0.88)
    assert student.gain == pytest.approx(0.3)
    assert student.absorbed == pytest.approx(0.5)


def test_a_teacher_that_is_not_ahead_has_nothing_to_absorb():
    answers = [
        answers_of(0, "base", "", 0.5),
        answers_of(0, "pilot", "text-20", 0.4),
        answers_of(0, "experts", "text@20", 0.5),
    ]
    (student,) = students(Standings(answers), [compared("s0-experts", 20, "text", "image")], BRANCHES, "greedy")
    assert student.absorbed is None


def test_pearsons_r_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    estimate = correlation(x.tolist(), y.tolist())
    assert estimate is not None
    r, low, high = estimate
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert low < r < high
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(57))  # the closed form for normal x and y
    assert [low, high] == pytest.approx(fisher.tolist(), abs=0.06)
    assert correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_sweep_is_in_order_with_copd_among_the_shares():
    answers = [
        answers_of(0, "r1o4", "merged", 0.4),
        answers_of(0, "copd3", "merged", 0.6),
        answers_of(0, "r4o1", "merged", 0.5),
    ]
    shares = sweep(Standings(answers), MethodConfig(rlvr_steps=3, opd_steps=2), ["text"], "greedy")
    assert [(share.rlvr_steps, share.accuracy.mean) for share in shares] == [(1, 0.4), (3, 0.6), (4, 0.5)]
    assert sweep(Standings(answers[1:2]), MethodConfig(), ["text"], "greedy") == []


def test_the_sweep_is_of_the_seeds_that_every_share_has():
    one_seed = [answers_of(0, "r1o4", "merged", 0.4), answers_of(0, "copd3", "merged", 0.6)]
    second = answers_of(1, "copd3", "merged", 1.0)
    shares = sweep(Standings([*one_seed, second]), MethodConfig(), ["text"], "greedy")
    assert [share.accuracy.mean for share in shares] == [0.4, 0.6]
    assert sweep(Standings([one_seed[0], second]), MethodConfig(), ["text"], "greedy") == []
