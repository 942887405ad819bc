"""Which completions share a forward pass, and where their tokens lie in it.

A pack is one row of tokens: for each group its prompt once, then its completions one after another. A completion sees
the prompt and itself; its positions go on where the prompt's end. The last token of a completion predicts nothing, so
it is not there.

    [ prompt | y_1 without its last token | y_2 ... | next prompt | ... ]

A row costs P + sum(C - 1) tokens for a group where separate sequences cost G * P + sum(C - 1), and attention in the
same proportion, so sharing is never the dearer way; a group that does not fit the budget is split, each piece with a
copy of the prompt. A pack holds completions of one part only: gradients are measured part by part.

Axes: T tokens of a pack, N tokens that are predicted in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.parts import Group, TrainingSample


@dataclass(frozen=True, slots=True)
class Span:
    """A group in a row of tokens."""

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
    """Groups that go through the model together."""

    groups: tuple[Group, ...]
    spans: tuple[Span, ...]
    ids_T: NDArray[np.int64]
    sources_N: NDArray[np.int64]
    """Where in the row each predicted token is predicted from."""
    targets_N: NDArray[np.int64]

    @property
    def targets(self) -> Iterator[TrainingSample]:
        return (target for group in self.groups for target in group.targets)

    @property
    def num_pairs(self) -> int:
        """Pairs of tokens in its attention, for balancing."""
        return sum(_pairs(span) for span in self.spans)


def pack(groups: Iterable[Group], budget: int) -> list[Pack]:
    """Rows of at most `budget` tokens, in the order given. One completion that is longer gets a row alone."""
    pieces = [piece for group in groups for piece in _split(group, budget)]
    rows: list[list[Group]] = []
    room = 0
    for piece in pieces:
        size = group_tokens(piece)
        if not rows or size > room:
            rows.append([])
            room = budget
        rows[-1].append(piece)
        room -= size
    return [lay_out(row) for row in rows]


def lay_out(groups: Iterable[Group]) -> Pack:
    groups = tuple(groups)
    ids: list[NDArray[np.int64]] = []
    spans: list[Span] = []
    sources: list[NDArray[np.int64]] = []
    start = 0
    for group in groups:
        span = Span(start, len(group.prompt_P), tuple(len(target.ids_C) - 1 for target in group.targets))
        spans.append(span)
        ids += [group.prompt_P, *(target.ids_C[:-1] for target in group.targets)]
        sources += _sources(span)
        start = span.end
    targets_N = np.concatenate([target.ids_C for group in groups for target in group.targets])
    return Pack(groups, tuple(spans), np.concatenate(ids), np.concatenate(sources), targets_N)


def share_out(packs: Sequence[Pack], ranks: int) -> list[list[int]]:
    """Which packs each of several processes takes, as even as largest-first makes it."""
    loads, shares = [0] * ranks, [list[int]() for _ in range(ranks)]
    cost = {number: _cost(one) for number, one in enumerate(packs)}
    for number in sorted(cost, key=lambda number: (-cost[number], number)):
        rank = loads.index(min(loads))
        shares[rank].append(number)
        loads[rank] += cost[number]
    return [sorted(share) for share in shares]


def group_tokens(group: Group) -> int:
    return len(group.prompt_P) + sum(len(target.ids_C) - 1 for target in group.targets)


def _split(group: Group, budget: int) -> Iterator[Group]:
    """Into pieces that fit, as few as possible: each is filled before the next begins."""
    pieces: list[list[TrainingSample]] = []
    room = 0
    for target in group.targets:
        size = len(target.ids_C) - 1
        if not pieces or size > room:
            pieces.append([])
            room = budget - len(group.prompt_P)
        pieces[-1].append(target)
        room -= size
    return (group.only(piece) for piece in pieces)


def _sources(span: Span) -> Iterator[NDArray[np.int64]]:
    """The first token comes from the prompt's last, every other from the one before."""
    last = span.start + span.prompt - 1
    start = last + 1
    for length in span.completions:
        yield np.concatenate([[last], np.arange(start, start + length)])
        start += length


def _pairs(span: Span) -> int:
    own = sum(length * (length + 1) // 2 for length in span.completions)
    return span.prompt * (span.prompt + 1) // 2 + span.prompt * sum(span.completions) + own


_PAIRS_PER_TOKEN = 1024
"""A token's products with the weights cost about as much as so many pairs; only the balance depends on it."""


def _cost(one: Pack) -> int:
    return len(one.ids_T) * _PAIRS_PER_TOKEN + one.num_pairs
