"""Advantages: what a reward or a teacher says about each token. Pure functions of NumPy arrays.

Native:   A = (r - mean) / (std + 1e-4) over the scorable completions of one prompt, std with n - 1
Teacher:  A = beta * clamp(log teacher - log student, -c, c), both from the engine in one call
Control:  A = -c where the student itself finds the token unlikely, else 0: no teacher at all

Axes: G completions of a prompt, C tokens of a completion.
"""

from collections.abc import Sequence

import numpy as np

from trainer.parts import Floats

_EPSILON = 1e-4


def group_advantages(rewards_G: Sequence[float | None], *, std: bool) -> list[float | None]:
    """Of the completions of one prompt. None where there is no reward: nobody has judged that completion.

    Exactly 0 for all when fewer than two were judged, since there is nothing to compare with, and when all are equal,
    whose mean can be another number by rounding.
    """
    judged = np.array([reward for reward in rewards_G if reward is not None], np.float64)
    if len(judged) < 2 or (judged == judged[0]).all():
        return [None if reward is None else 0.0 for reward in rewards_G]
    mean, divisor = judged.mean(), judged.std(ddof=1) + _EPSILON if std else 1.0
    return [None if reward is None else float((reward - mean) / divisor) for reward in rewards_G]


def teacher_advantages(teacher_C: Floats, student_C: Floats, *, beta: float, clamp: float) -> Floats:
    """Log-probabilities of the student's own tokens under both: a sample of the reverse KL's gradient."""
    return (beta * np.clip(teacher_C - student_C, -clamp, clamp)).astype(np.float32)


def negative_advantages(student_C: Floats, *, advantage: float, probability: float) -> Floats:
    """The control that needs no teacher: unlikely tokens are pushed down."""
    return np.where(student_C < np.log(probability), -advantage, 0.0).astype(np.float32)
