"""What an update is made of: completions with an advantage for each token, whoever gave it.

A `LossTerm` is one term of the loss: the branch's own questions, or the questions of one teacher. The update sees
nothing else, so it does not know rewards from teachers. Everything here is NumPy: terms are made and sent without
torch.

Axes: C tokens of a completion, P tokens of a prompt, k a teacher's likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """A teacher's k likeliest tokens at each position; what they leave over is one bin more."""

    ids_Ck: Ids
    logprobs_Ck: Floats
    weight: float
    """Of the divergence in the loss: the edge's beta."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSample:
    """One completion as the update sees it."""

    ids_C: Ids
    advantages_C: Floats
    engine_logprobs_C: Floats
    """What the engine that sampled it said at that moment."""
    bins: TopK | None = None

    def __post_init__(self) -> None:
        assert len(self.ids_C) == len(self.advantages_C) == len(self.engine_logprobs_C) > 0


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The completions of one prompt."""

    prompt_P: Ids
    """Expanded, exactly as the engine had it."""
    images: tuple[bytes, ...]
    """Encoded, as they came."""
    videos: tuple[bytes, ...]
    targets: tuple[TrainingSample, ...]
    kind: str = ""
    """By which the gradients of one part are told apart: the capability, of a branch that has several."""

    def only(self, targets: Sequence[TrainingSample]) -> Self:
        """The same prompt with some of its completions."""
        return replace(self, targets=tuple(targets))


@dataclass(frozen=True, slots=True, eq=False)
class LossTerm:
    """One term of the loss, normalised by its own completions or tokens."""

    name: str
    """`native`, or the teacher's branch."""
    groups: tuple[Group, ...]

    @property
    def num_sequences(self) -> int:
        return sum(len(group.targets) for group in self.groups)

    @property
    def num_tokens(self) -> int:
        return sum(len(target.ids_C) for group in self.groups for target in group.targets)
