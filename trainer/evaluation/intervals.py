"""95 % intervals of means, paired by question and by seed.

A difference of two models is taken question by question (and seed by seed) before its spread is, so what makes a
question hard for both does not widen it. Questions and seeds are both samples of what might have been asked and
trained: the spread of the mean counts both (two-way layout, random effects, Satterthwaite's degrees of freedom). Seeds
with questions of their own are that layout without an effect of questions.

Many claims that are tested at once are corrected for their number by Holm's rule.

Axes: S seeds, Q questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEVEL = 0.95
_NORMAL = 1e6
"""Degrees of freedom from which t is the normal distribution to more digits than the grid has."""
_GRID = 20_001
"""Points that the density of t is summed over: the quantile is right to 1e-4, as the printed table is."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how far it may be off."""

    mean: float
    error: float | None
    """Standard error; None: a single value says nothing of its spread."""
    freedom: float = math.inf
    """Degrees of freedom of that error."""

    @property
    def half_width(self) -> float | None:
        return None if self.error is None else self.error * student_t(self.freedom)

    @property
    def p_value(self) -> float | None:
        """The chance of a mean at least as far from 0 where the true one is 0, two-sided."""
        if self.error is None:
            return None
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return tail_probability(abs(self.mean) / self.error, self.freedom)

    @property
    def low(self) -> float | None:
        return None if (half := self.half_width) is None else self.mean - half

    @property
    def high(self) -> float | None:
        return None if (half := self.half_width) is None else self.mean + half


def interval(values: NDArray[np.float64]) -> Interval:
    """The mean of values [Q], or [S, Q] where seeds have the same questions, or as many of their own. A question that
    nobody could judge, NaN, is left out."""
    values_SQ = np.atleast_2d(values)
    # For all seeds: the two-way layout has no holes.
    values_SQ = values_SQ[:, ~np.isnan(values_SQ).any(axis=0)]
    S, Q = values_SQ.shape
    if Q == 0:
        return Interval(math.nan, None)
    mean = float(values_SQ.mean())
    if S > 1 and Q > 1:
        return _two_way(values_SQ, mean)
    if S * Q == 1:
        return Interval(mean, None)
    return Interval(mean, float(values_SQ.std(ddof=1)) / math.sqrt(S * Q), S * Q - 1)


def _two_way(values_SQ: NDArray[np.float64], mean: float) -> Interval:
    # Mean squares of the layout x_sq = mean + seed_s + question_q + rest_sq, all three of them random. What they are
    # on average, with variances v:    M_s = Q v_s + v_rest,    M_q = S v_q + v_rest,    M_rest = v_rest.
    S, Q = values_SQ.shape
    seeds, questions = values_SQ.mean(axis=1), values_SQ.mean(axis=0)
    rest = values_SQ - seeds[:, None] - questions[None, :] + mean
    by_seed = Q * float(((seeds - mean) ** 2).sum()) / (S - 1)
    by_question = S * float(((questions - mean) ** 2).sum()) / (Q - 1)
    by_rest = float((rest**2).sum()) / ((S - 1) * (Q - 1))
    # The mean has the variance v_s / S + v_q / Q + v_rest / (S Q) = (M_s + M_q - M_rest) / (S Q). By chance an estimate
    # comes out below 0 and counts as 0: without v_q this is M_s / (S Q), without v_s it is M_q / (S Q).
    square = max(by_seed + by_question - by_rest, by_seed, by_question)
    if square == 0:
        return Interval(mean, 0.0)
    # Satterthwaite: the degrees of freedom of a sum of mean squares, (sum M)^2 / sum (M^2 / freedom of M).
    spread = by_seed**2 / (S - 1) + by_question**2 / (Q - 1) + by_rest**2 / ((S - 1) * (Q - 1))
    return Interval(mean, math.sqrt(square / (S * Q)), max(1.0, square**2 / spread))


def average(parts: Sequence[Interval]) -> Interval:
    """The plain mean of independent means, such as those of several capabilities."""
    mean = sum(part.mean for part in parts) / len(parts)
    squares = [part.error**2 for part in parts if part.error is not None]
    if len(squares) < len(parts):
        return Interval(mean, None)
    if not any(squares):
        return Interval(mean, 0.0)
    # Variances of independent means add up, and Satterthwaite's freedom as above.
    spread = sum(square**2 / part.freedom for square, part in zip(squares, parts, strict=True))
    freedom = sum(squares) ** 2 / spread if spread else math.inf
    return Interval(mean, math.sqrt(sum(squares)) / len(parts), freedom)


def student_t(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t."""
    angles, below = _student_angles(freedom)
    return math.sqrt(min(freedom, _NORMAL)) * math.tan(float(np.interp(_LEVEL, below, angles)))


def tail_probability(t: float, freedom: float) -> float:
    """The chance that Student's t is further from 0 than this, on either side."""
    angles, below = _student_angles(freedom)
    return 1 - float(np.interp(math.atan(t / math.sqrt(min(freedom, _NORMAL))), angles, below))


def _student_angles(freedom: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles a with t = sqrt(f) tan(a), and the chance that |t| is below: the density of a is that of
    cos(a) ** (f - 1)."""
    freedom = min(freedom, _NORMAL)
    # For many degrees of freedom all of the density is near angle 0, where it is normal: nothing is left beyond 12.
    angles = np.linspace(0.0, min(math.pi / 2, 12 / math.sqrt(freedom)), _GRID)
    density = np.cos(angles) ** (freedom - 1)
    # Trapezoids; the density on one side of 0 is half of all, as on the other.
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, below / below[-1]


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for all: below 0.05, it holds with 5 % for the whole family.

    p_(i) of the m sorted ones becomes the largest of min(1, (m - j + 1) p_(j)) over j <= i.
    """
    order = np.argsort(p_values)
    raised = [min(1.0, (len(p_values) - rank) * p_values[index]) for rank, index in enumerate(order)]
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(raised) if raised else []
    return corrected.tolist()
