from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.orchestration.run_events import overlap, step
from trainer.compare.answers import ResultAnswers
from trainer.compare.dynamics import (
    DynamicsPoint,
    Student,
    correlation,
    phase_changes,
    pulls,
    series,
    students,
    sweep,
)
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
    (point,) = students(Standings(answers), events, BRANCHES, "greedy")
    assert (point.capability, point.age) == ("text", 20)
    assert point.overlap == pytest.approx(0.88)
    assert point.gain == pytest.approx(0.3)
    assert point.absorbed == pytest.approx(0.5)


def test_a_teacher_that_is_not_ahead_has_nothing_to_absorb():
    answers = [
        answers_of(0, "base", "", 0.5),
        answers_of(0, "pilot", "text-20", 0.4),
        answers_of(0, "experts", "text@20", 0.5),
    ]
    (point,) = students(Standings(answers), [compared("s0-experts", 20, "text", "image")], BRANCHES, "greedy")
    assert point.absorbed is None


def student(seed: int, overlap: float, gain: float, age: int = 20) -> Student:
    return Student(seed, "text", age, float(overlap), float(gain), float(gain))


def test_pearsons_r_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    # One student of each expert: then experts are as independent as points are.
    estimate = correlation([student(seed, *point) for seed, point in enumerate(zip(x, y, strict=True))], "gain")
    assert estimate is not None
    assert estimate.interval is not None
    low, high = estimate.interval
    assert estimate.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert low < estimate.r < high
    fisher = np.tanh(np.arctanh(estimate.r) + np.array([-1.96, 1.96]) / np.sqrt(57))  # closed form for normal x and y
    assert [low, high] == pytest.approx(fisher.tolist(), abs=0.06)
    assert correlation([student(seed, 1, seed) for seed in range(3)], "gain") is None


def test_students_of_one_expert_are_no_independent_points():
    """Ten copies of each point: the interval of the sixty is that of the six experts."""
    points = list(zip([0.1, 0.3, 0.2, 0.5, 0.4, 0.6], [0.2, 0.1, 0.4, 0.3, 0.6, 0.5], strict=True))
    experts = [student(seed, *point) for seed, point in enumerate(points)]
    copies = [student(seed, *point, age) for seed, point in enumerate(points) for age in range(10)]
    whole, copied = correlation(experts, "gain"), correlation(copies, "gain")
    assert whole is not None
    assert copied is not None
    assert whole.interval is not None
    assert copied.interval == pytest.approx(whole.interval)
    few = correlation(experts[:5], "gain")
    assert few is not None
    assert few.interval is None


def test_what_a_phase_changes_is_the_mean_of_its_runs():
    """Overlap falls by 0.02 in RLVR and comes back by 0.01 in distillation, whichever seed."""
    points = [
        DynamicsPoint("copd3", seed, phase, step, level + seed / 10, level, 1 - level, level)
        for seed in range(2)
        for phase, step, level in [("rlvr", 3, 0.98), ("opd", 5, 0.99), ("rlvr", 8, 0.97), ("opd", 10, 0.98)]
    ]
    alone = [DynamicsPoint("experts", 0, "rlvr", step, 0.9, 0.9, 0.1, 0.9) for step in (5, 10)]
    changes = {(change.phase, change.quantity): change for change in phase_changes([*points, *alone])}
    assert {change.system for change in changes.values()} == {"copd3"}
    assert changes["rlvr", "overlap"].change.mean == pytest.approx(-0.02)
    assert changes["opd", "overlap"].change.mean == pytest.approx(0.01)
    assert changes["opd", "kl"].change.mean == pytest.approx(-0.01)
    assert changes["opd", "kl"].change.half_width == pytest.approx(0)


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
