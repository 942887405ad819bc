"""The ways in which a model answers a question, by name and by kind.

The first kind that there is decides: by it systems are compared, and scales and learning rates are chosen.
"""

from dataclasses import dataclass

from trainer.recipe import AnswersConfig

PRIMARY, GREEDY, SAMPLED = KINDS = ("primary", "greedy", "sampled")
"""In the order in which they are shown."""
_TEMPERATURE = " T"
"""What follows the number of answers in the name of the primary way alone: files of before have `avg@4` for others."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """A way of answering a question."""

    name: str
    """`avg@8 T0.7`, `greedy` or `avg@4`."""
    n: int
    temperature: float
    top_p: float


def ways_of(answers: AnswersConfig) -> tuple[Decoding, ...]:
    """All ways that a recipe asks for, the one that decides first."""
    # Its temperature is part of the name: seeds are drawn by name, and 8 other samples must be others.
    ways: list[Decoding] = []
    if primary := answers.primary:
        name = f"avg@{primary.samples}{_TEMPERATURE}{primary.temperature:g}"
        ways.append(Decoding(name, primary.samples, primary.temperature, primary.top_p))
    if answers.greedy:
        ways.append(Decoding(GREEDY, 1, 0.0, 1.0))
    if answers.samples:
        ways.append(Decoding(f"avg@{answers.samples}", answers.samples, answers.temperature, answers.top_p))
    return tuple(ways)


def kind_of(way: str) -> str:
    """Which of `KINDS` the way of this name is."""
    return PRIMARY if _TEMPERATURE in way else GREEDY if way == GREEDY else SAMPLED
