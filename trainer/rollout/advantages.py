"""Advantages: what a reward or a teacher says about each token. Pure functions of NumPy arrays.

    rewards   A = (r - mean) / (std + 1e-4) over the scorable completions of one prompt, std with n - 1
    teacher   A = beta * clamp(log p_teacher - log p_student, -c, c)
    control   A = -c where the student itself finds the token unlikely, else 0

Axes: G completions of a prompt, C tokens of a completion.
"""

from collections.abc import Sequence

import numpy as np

from trainer.parts import Floats

EPSILON = 1e-4
"""Keeps a group of nearly equal rewards finite. The value is that of TRL, which the tests compare with."""


def group_advantages(rewards_G: Sequence[float | None], *, std: bool) -> list[float | None]:
    """GRPO's advantage of each completion of one prompt. None where there is no reward: nobody judged that one."""
    judged = np.array([reward for reward in rewards_G if reward is not None], np.float64)
    # Exactly 0 where there is nothing to compare: the update skips such groups by asking for zeros, and the mean of
    # equal rewards can differ from them by rounding.
    if len(judged) < 2 or (judged == judged[0]).all():
        return [None if reward is None else 0.0 for reward in rewards_G]
    # Without `std` this is Dr. GRPO: dividing by the spread weighs prompts that are nearly decided up.
    mean, divisor = judged.mean(), judged.std(ddof=1) + EPSILON if std else 1.0
    return [None if reward is None else float((reward - mean) / divisor) for reward in rewards_G]


def teacher_advantages(delta_C: Floats, *, beta: float, clamp: float) -> Floats:
    """A sample of the reverse KL's gradient at each token of the student: beta * (log p_teacher - log p_student)."""
    # Clamped: one token that the teacher finds impossible would outweigh the whole batch.
    return (beta * np.clip(delta_C, -clamp, clamp)).astype(np.float32)


def negative_advantages(student_C: Floats, *, advantage: float, probability: float) -> Floats:
    """The control that needs no teacher: tokens below a probability are pushed down, all others left alone."""
    return np.where(student_C < np.log(probability), -advantage, 0.0).astype(np.float32)
