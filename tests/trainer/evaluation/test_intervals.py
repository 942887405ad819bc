"""Intervals: against known quantiles, the closed form, and how often they hold what they should."""

import math

import numpy as np
import pytest

from trainer.evaluation.intervals import Interval, average, interval, student_t


def holds_0(interval: Interval) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= 0.0 <= interval.high


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (10, 2.2281), (100, 1.9840), (math.inf, 1.9600)]
)
def test_quantiles_are_those_of_the_printed_table(freedom: float, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-4)


def test_one_seed_is_the_closed_form() -> None:
    estimate = interval(np.array([1.0, 0.0, 1.0, 1.0, 0.5]))
    assert estimate.mean == pytest.approx(0.7)
    assert estimate.error == pytest.approx(math.sqrt(0.2 / 5))  # sum of squares 0.8, over n - 1 = 4
    assert estimate.high == pytest.approx(0.7 + 2.7764 * math.sqrt(0.2 / 5), abs=1e-4)


def test_one_seed_agrees_with_a_bootstrap() -> None:
    rng = np.random.RandomState(1)
    values = rng.binomial(1, 0.7, 400) - rng.binomial(1, 0.5, 400)
    means = rng.choice(values, (4000, 400)).mean(axis=1)
    estimate = interval(values.astype(float))
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.006)


@pytest.mark.parametrize(("seeds", "questions"), [(0.0, 0.3), (0.1, 0.1), (0.05, 0.0)])
def test_the_true_mean_is_inside_19_times_of_20(seeds: float, questions: float) -> None:
    rng, inside, times = np.random.RandomState(2), 0, 1000
    for _ in range(times):
        values_SQ = (
            seeds * rng.standard_normal((4, 1)) + questions * rng.standard_normal((1, 40))
            + 0.3 * rng.standard_normal((4, 40))
        )  # fmt: skip
        estimate = interval(values_SQ)
        inside += holds_0(estimate)
    assert 0.93 < inside / times < 0.995


@pytest.mark.parametrize("seeds", [0.0, 0.1])
def test_four_times_as_many_seeds_with_their_own_questions_halve_it(seeds: float) -> None:
    rng, times = np.random.RandomState(4), 500
    intervals = {
        S: [interval(seeds * rng.standard_normal((S, 1)) + 0.4 * rng.standard_normal((S, 40))) for _ in range(times)]
        for S in (5, 20)
    }
    for repeated in intervals.values():
        assert sum(holds_0(estimate) for estimate in repeated) / times > 0.93  # too wide where seeds are alike
    errors = {S: np.mean([estimate.error or 0.0 for estimate in repeated]) for S, repeated in intervals.items()}
    assert errors[20] / errors[5] == pytest.approx(0.5, abs=0.06)


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.RandomState(3)
    values_SQ = rng.standard_normal((3, 100))
    apart = values_SQ + np.array([[-1.0], [0.0], [1.0]])
    wide, narrow = interval(apart).half_width, interval(values_SQ).half_width
    assert wide is not None
    assert narrow is not None
    assert wide > 3 * narrow


def test_a_value_that_nobody_judged_takes_its_question_out() -> None:
    estimate = interval(np.array([1.0, math.nan, 0.0, 1.0]))
    assert estimate == interval(np.array([1.0, 0.0, 1.0]))
    assert interval(np.array([[1.0, math.nan], [0.0, 1.0]])) == interval(np.array([1.0, 0.0]))


def test_a_single_value_has_no_interval() -> None:
    assert interval(np.array([1.0])) == Interval(1.0, None)
    assert interval(np.array([1.0])).low is None
    assert math.isnan(interval(np.array([math.nan])).mean)


def test_an_average_has_the_error_of_independent_parts() -> None:
    estimate = average([Interval(0.2, 0.03, 10), Interval(0.6, 0.04, 10)])
    assert estimate.mean == pytest.approx(0.4)
    assert estimate.error == pytest.approx(0.025)
    assert 10 < estimate.freedom < 20
    alone = average([Interval(0.5, 0.1, 9)])
    assert (alone.mean, alone.error, alone.freedom) == pytest.approx((0.5, 0.1, 9))
    assert average([Interval(0.5, 0.1, 9), Interval(0.5, None)]).low is None
