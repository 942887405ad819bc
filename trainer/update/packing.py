"""Which completions share a forward pass, and where their tokens lie in it.

A pack is one row of tokens: for each group its prompt once, then its completions one after another. A completion sees
the prompt and itself; its positions go on where the prompt's end. The last token of a completion predicts nothing, so
it is not there.

    [ prompt | y_1 without its last token | y_2 ... | next prompt | ... ]

A row costs P + sum(C - 1) tokens for a rollout where separate sequences cost G * P + sum(C - 1), and attention in the
same proportion, so sharing is never the dearer way; a rollout that does not fit the budget is split, each piece with a
copy of the prompt. A pack holds completions of one loss term only: gradients are measured term by term.

Axes: T tokens of a pack, N tokens that are predicted in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.parts import Completion, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Span:
    """A rollout in a row of tokens."""

    start: int
    prompt: int
    """Tokens of the prompt."""
    completions: tuple[int, ...]
    """Tokens of each completion that are there: all but its last. May be 0."""

    @property
    def end(self) -> int:
        return self.start + self.prompt + sum(self.completions)


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """Rollouts that go through the model together."""

    rollouts: tuple[Rollout, ...]
    spans: tuple[Span, ...]
    ids_T: NDArray[np.int64]
    sources_N: NDArray[np.int64]
    """Where in the row each predicted token is predicted from."""
    targets_N: NDArray[np.int64]

    @property
    def completions(self) -> Iterator[Completion]:
        return (completion for rollout in self.rollouts for completion in rollout.completions)

    @property
    def num_pairs(self) -> int:
        """Pairs of tokens in its attention, for balancing."""
        pairs = 0
        for span in self.spans:
            pairs += span.prompt * (span.prompt + 1) // 2  # the prompt sees itself, causally
            pairs += span.prompt * sum(span.completions)  # every completion sees the prompt
            pairs += sum(length * (length + 1) // 2 for length in span.completions)  # and itself
        return pairs


def pack(rollouts: Iterable[Rollout], budget: int) -> list[Pack]:
    """Rows of at most `budget` tokens, in the order given. One completion that is longer gets a row alone."""
    pieces = [piece for rollout in rollouts for piece in split(rollout, budget)]
    rows: list[list[Rollout]] = []
    room = 0
    # First in order, not best fit: the order of completions is that of the batch, in every process and on a replay.
    for piece in pieces:
        size = rollout_tokens(piece)
        if not rows or size > room:
            rows.append([])
            room = budget
        rows[-1].append(piece)
        room -= size
    return [lay_out(row) for row in rows]


def lay_out(rollouts: Iterable[Rollout]) -> Pack:
    rollouts = tuple(rollouts)
    ids: list[NDArray[np.int64]] = []
    spans: list[Span] = []
    sources: list[NDArray[np.int64]] = []
    start = 0
    for rollout in rollouts:
        lengths = tuple(len(completion.ids_C) - 1 for completion in rollout.completions)
        span = Span(start, len(rollout.ids_P), lengths)
        spans.append(span)
        ids += [rollout.ids_P, *(completion.ids_C[:-1] for completion in rollout.completions)]
        # A completion's first token is predicted from the prompt's last, every other from the one before it.
        last_of_prompt = start + len(rollout.ids_P) - 1
        first = last_of_prompt + 1
        for length in lengths:
            sources.append(np.concatenate([[last_of_prompt], np.arange(first, first + length)]))
            first += length
        start = span.end
    targets_N = np.concatenate([completion.ids_C for rollout in rollouts for completion in rollout.completions])
    return Pack(rollouts, tuple(spans), np.concatenate(ids), np.concatenate(sources), targets_N)


def text_pack(prompt: Sequence[int], completion: Sequence[int]) -> Pack:
    """A fixed text that nobody has sampled."""
    ids_C = np.array(completion, np.int64)
    rollout = Rollout(
        Prompt(id="", capability="", messages=(), answer=""),
        np.array(prompt, np.int64),
        (Completion(ids_C, np.zeros(len(ids_C), np.float32)),),
    )
    return lay_out([rollout])


PAIRS_PER_TOKEN = 1024
"""A token's products with the weights cost about as much as so many pairs; only the balance depends on it."""


def share_out(packs: Sequence[Pack], ranks: int) -> list[list[int]]:
    """Which packs each of several processes takes, as even as largest-first makes it."""
    loads, shares = [0] * ranks, [list[int]() for _ in range(ranks)]
    costs = [len(row.ids_T) * PAIRS_PER_TOKEN + row.num_pairs for row in packs]
    for index in sorted(range(len(packs)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += costs[index]
    return [sorted(share) for share in shares]


def rollout_tokens(rollout: Rollout) -> int:
    return len(rollout.ids_P) + sum(len(completion.ids_C) - 1 for completion in rollout.completions)


def split(rollout: Rollout, budget: int) -> Iterator[Rollout]:
    """Into pieces that fit, as few as possible: each is filled before the next begins."""
    pieces: list[list[Completion]] = []
    room = 0
    for completion in rollout.completions:
        size = len(completion.ids_C) - 1
        if not pieces or size > room:
            pieces.append([])
            room = budget - len(rollout.ids_P)  # every piece computes the prompt again
        pieces[-1].append(completion)
        room -= size
    return (rollout.only(piece) for piece in pieces)
