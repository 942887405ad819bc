from pathlib import Path
from typing import Any

import pytest

from tests.trainer.orchestration.run_events import overlap, step
from trainer.compare.answers import ResultAnswers
from trainer.compare.dynamics import (
    DynamicsPoint,
    phase_changes,
    pulls,
    series,
    sweep,
)
from trainer.compare.standings import Standings
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig, MethodConfig
from trainer.recipe.file import load

COMPARISON = ComparisonConfig(seeds=3, systems=("mixed3", "copd3"))
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
    assert point.shared == pytest.approx(0.98)


def test_a_branch_alone_has_no_pair():
    assert series([compared("s0-experts", 5, "text")], BRANCHES) == []


def test_seeds_that_are_not_shown_are_left_out():
    assert series([compared("s7-copd3", 5, "text", "image")], BRANCHES) == []


def test_gradients_of_a_mixed_branch_are_read_by_pair():
    event = step("s1-mixed3", 4, 0.5)
    event["metrics"] |= {"native/cosine:text:image": -0.25}
    (pull,) = pulls([event, step("s1-experts-text", 4, 0.5)], BRANCHES)
    assert (pull.system, pull.seed, pull.step, pull.pair, pull.cosine) == ("mixed3", 1, 4, "text - image", -0.25)


def test_what_a_phase_changes_is_the_mean_of_its_runs():
    """Overlap falls by 0.02 in RLVR and comes back by 0.01 in distillation, whichever seed; so does what is shared."""
    points = [
        DynamicsPoint("copd3", seed, phase, step, level + seed / 10, level, 1 - level, level, level if seed else None)
        for seed in range(2)
        for phase, step, level in [("rlvr", 3, 0.98), ("opd", 5, 0.99), ("rlvr", 8, 0.97), ("opd", 10, 0.98)]
    ]
    alone = [DynamicsPoint("experts", 0, "rlvr", step, 0.9, 0.9, 0.1, 0.9) for step in (5, 10)]
    changes = {(change.phase, change.quantity): change for change in phase_changes([*points, *alone])}
    assert {change.system for change in changes.values()} == {"copd3"}
    assert changes["rlvr", "overlap"].change.mean == pytest.approx(-0.02)
    assert changes["opd", "overlap"].change.mean == pytest.approx(0.01)
    assert changes["opd", "shared"].change.mean == pytest.approx(0.01)  # of the seed that has it
    assert changes["opd", "shared"].change.half_width is None
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
