from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.orchestration.run_events import overlap
from trainer.compare.answers import ResultAnswers
from trainer.compare.standings import Standings
from trainer.compare.students import Student, correlation, students
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig
from trainer.recipe.file import load

COMPARISON = ComparisonConfig(seeds=2, systems=("pilot", "ages"))
SEGMENTS = make_plan(
    load(Path("recipes/miniature/compare.toml")).model_copy(update={"comparison": COMPARISON})
).segments


def answers_of(system: str, row: str, share: float, exam: str = "image", seed: int = 0) -> ResultAnswers:
    """Ten answers, of which a share is right."""
    right = int(10 * share)
    return ResultAnswers(seed, system, row, exam, "greedy", (1.0,) * right + (0.0,) * (10 - right), 9.0, 0.0)


def compared(*names: str) -> dict[str, Any]:
    return overlap(20, *names, value=0.9)


def test_a_pilots_student_is_read_against_itself_before_it_listened():
    answers = [
        answers_of("base", "", 0.1),
        answers_of("pilot", "t70@20", 0.2),
        answers_of("pilot", "t70", 0.5),
        answers_of("experts", "image@100", 0.8),
    ]
    events = [compared("s0-pilot-t40@20", "s0-pilot-t70@20", "s0-experts-image@100")]
    (point,) = students(Standings(answers), events, SEGMENTS, "greedy")
    assert (point.system, point.seed, point.capability, point.setting) == ("pilot", 0, "image", 0.7)
    assert (point.overlap, point.shared, point.kl) == pytest.approx((0.89, 0.98, 0.02))
    assert point.gain == pytest.approx(0.3)
    assert point.absorbed == pytest.approx(0.5)


def test_a_student_of_an_aged_teacher_is_read_against_the_base():
    answers = [
        answers_of("base", "", 0.2, "text"),
        answers_of("ages", "text-20", 0.5, "text"),
        answers_of("experts", "text@20", 0.8, "text"),
    ]
    (point,) = students(Standings(answers), [compared("s0-experts-text@20", "s0-experts-image@20")], SEGMENTS, "greedy")
    assert (point.system, point.capability, point.setting) == ("ages", "text", 20)
    assert point.overlap == pytest.approx(0.88)
    assert point.absorbed == pytest.approx(0.5)


def test_a_teacher_that_is_not_ahead_has_nothing_to_absorb():
    answers = [
        answers_of("pilot", "t70@20", 0.5), answers_of("pilot", "t70", 0.4), answers_of("experts", "image@100", 0.5)
    ]  # fmt: skip
    events = [compared("s0-pilot-t70@20", "s0-experts-image@100")]
    (point,) = students(Standings(answers), events, SEGMENTS, "greedy")
    assert (point.gain, point.absorbed) == (pytest.approx(-0.1), None)


def test_students_that_nobody_examined_or_compared_are_left_out():
    answers = [answers_of("pilot", "t70@20", 0.2), answers_of("experts", "image@100", 0.8)]
    events = [compared("s0-pilot-t70@20", "s0-experts-image@100")]
    assert students(Standings(answers), events, SEGMENTS, "greedy") == []
    assert students(Standings([*answers, answers_of("pilot", "t70", 0.5)]), [], SEGMENTS, "greedy") == []


def student(seed: int, overlap: float, gain: float, setting: float = 0.7) -> Student:
    return Student("pilot", seed, "image", setting, float(overlap), 1 - float(overlap), 0.1, float(gain), float(gain))


def test_pearsons_r_and_its_interval():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    # One student of each run: then runs are as independent as points are.
    points = [student(seed, *point) for seed, point in enumerate(zip(x, y, strict=True))]
    estimate = correlation(points, "gain")
    assert estimate is not None
    assert estimate.interval is not None
    low, high = estimate.interval
    assert estimate.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert low < estimate.r < high
    fisher = np.tanh(np.arctanh(estimate.r) + np.array([-1.96, 1.96]) / np.sqrt(57))  # closed form for normal x and y
    assert [low, high] == pytest.approx(fisher.tolist(), abs=0.06)
    assert correlation([student(seed, 1, seed) for seed in range(3)], "gain") is None
    mirrored = correlation(points, "gain", "shared")
    assert mirrored is not None
    assert mirrored.r == pytest.approx(-estimate.r)


def test_students_of_one_run_are_no_independent_points():
    """Ten copies of each point: the interval of the sixty is that of the six runs."""
    points = list(zip([0.1, 0.3, 0.2, 0.5, 0.4, 0.6], [0.2, 0.1, 0.4, 0.3, 0.6, 0.5], strict=True))
    runs = [student(seed, *point) for seed, point in enumerate(points)]
    copies = [student(seed, *point, setting) for seed, point in enumerate(points) for setting in range(10)]
    whole, copied = correlation(runs, "gain"), correlation(copies, "gain")
    assert whole is not None
    assert copied is not None
    assert whole.interval is not None
    assert copied.interval == pytest.approx(whole.interval)
    few = correlation(runs[:5], "gain")
    assert few is not None
    assert few.interval is None
