"""What data, sampling and the update hand to each other: prompts, their completions, the terms of the loss.

A `Rollout` is a prompt with its completions and stays the same type on its whole way: the engine fills in tokens and
log-probabilities, the judge a reward, a teacher its difference, and what either is worth becomes an advantage for each
token. A `LossTerm` is rollouts that count together. The update sees nothing else, so it cannot tell a reward from a
teacher. Everything is NumPy: data and sampling do without torch.

Axes: P tokens of a prompt, C tokens of a completion, k a teacher's likeliest tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class TextContent(TypedDict):
    type: Literal["text"]
    text: str


class MediaContent(TypedDict):
    """Stands where the next image, or the next video, of the prompt belongs."""

    type: Literal["image", "video"]


Content = TextContent | MediaContent


class ChatMessage(TypedDict):
    role: str
    content: list[Content]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with its media, encoded as they came, and its answer."""

    id: str
    """A hash of everything else here: equal prompts have equal ids, on any machine."""
    capability: str
    messages: tuple[ChatMessage, ...]
    answer: str
    images: tuple[bytes, ...] = ()
    videos: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """A teacher's k likeliest tokens at each position. The update adds one bin for all other tokens together."""

    ids_Ck: Ids
    logprobs_Ck: Floats
    beta: float
    """The weight of their divergence in the loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One completion of a prompt and what is known of it so far."""

    ids_C: Ids
    logprobs_C: Floats
    """What the engine that sampled it said at that moment; empty where nobody asked."""
    text: str = ""
    is_cut_off: bool = False
    reward: float | None = None
    """None: nobody has judged it, or nobody could."""
    why: str | None = None
    """The reason why it could not be judged."""
    advantages_C: Floats | None = None
    """None: nothing is learnt from it."""
    delta_C: Floats | None = None
    """Teacher minus student, where a teacher scored it: log p_teacher - log p_student."""
    top_k: TopK | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """A prompt and its completions by one branch."""

    prompt: Prompt
    ids_P: Ids
    """The prompt as the engine had it, every image and video expanded to its tokens."""
    completions: tuple[Completion, ...]

    def only(self, completions: Iterable[Completion]) -> Self:
        """The same prompt with some of its completions."""
        return replace(self, completions=tuple(completions))


@dataclass(frozen=True, slots=True, eq=False)
class LossTerm:
    """One term of the loss, normalised by its own completions or tokens."""

    name: str
    """`native`, or the teacher's branch."""
    rollouts: tuple[Rollout, ...]

    @property
    def num_sequences(self) -> int:
        return sum(len(rollout.completions) for rollout in self.rollouts)

    @property
    def num_tokens(self) -> int:
        return sum(len(completion.ids_C) for rollout in self.rollouts for completion in rollout.completions)


def loss_term(name: str, rollouts: Iterable[Rollout]) -> LossTerm:
    """The completions that have advantages; a prompt without any leaves, and counts in no denominator."""
    trained = (
        rollout.only(completion for completion in rollout.completions if completion.advantages_C is not None)
        for rollout in rollouts
    )
    return LossTerm(name, tuple(rollout for rollout in trained if rollout.completions))
