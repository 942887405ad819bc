"""95 % intervals of means, paired by question and by seed.

A difference of two models is taken question by question (and seed by seed) before its spread is, so what makes a
question hard for both does not widen it. Questions and seeds are both samples of what might have been asked and
trained: the spread of the mean counts both (two-way layout, random effects, Satterthwaite's degrees of freedom). Seeds
with questions of their own are that layout without an effect of questions.

Left out: corrections for many comparisons.

Axes: S seeds, Q questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEVEL = 0.95
_GRID = 20_001


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
    def low(self) -> float | None:
        return None if (half := self.half_width) is None else self.mean - half

    @property
    def high(self) -> float | None:
        return None if (half := self.half_width) is None else self.mean + half


def interval(values: NDArray[np.float64]) -> Interval:
    """Of values [Q], or [S, Q] where seeds have the same questions, or as many of their own. NaN, nobody judged it,
    leaves its question."""
    values_SQ = np.atleast_2d(values)
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
    """The mean squares of seeds and of questions each hold that of the rest, so it is taken off once."""
    S, Q = values_SQ.shape
    seeds, questions = values_SQ.mean(axis=1), values_SQ.mean(axis=0)
    rest = values_SQ - seeds[:, None] - questions[None, :] + mean
    by_seed = Q * float(((seeds - mean) ** 2).sum()) / (S - 1)
    by_question = S * float(((questions - mean) ** 2).sum()) / (Q - 1)
    by_rest = float((rest**2).sum()) / ((S - 1) * (Q - 1))
    square = max(by_seed + by_question - by_rest, by_seed, by_question)
    if square == 0:
        return Interval(mean, 0.0)
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
    spread = sum(square**2 / part.freedom for square, part in zip(squares, parts, strict=True))
    freedom = sum(squares) ** 2 / spread if spread else math.inf
    return Interval(mean, math.sqrt(sum(squares)) / len(parts), freedom)


def student_t(freedom: float) -> float:
    """The two-sided 95 % quantile: with t = sqrt(f) tan(a), the density of the angle a is that of cos(a) ** (f - 1)."""
    freedom = min(freedom, 1e6)
    angles = np.linspace(0.0, min(math.pi / 2, 12 / math.sqrt(freedom)), _GRID)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(_LEVEL * below[-1], below, angles)))
