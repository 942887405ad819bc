"""Which questions a capability is measured on, and which are left to train on: never the same.

They are the same for every seed of a run, so that runs can be compared question by question. A data set with no
`held_out` of its own gives up a few of its rows, chosen by their content, at most a fifth of them; rows that are equal
go the same way.
"""

from dataclasses import replace

from adapters.errors import UserError
from service.media import Limits
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.recipe import CapabilityConfig, DatasetData, MiniatureData

SEED = 1000
"""Of the questions that the miniature makes up to measure on."""
_PLENTY = 1_000_000
_LEAST_ROWS = 5
"""For each of them one row may be held out."""


def measured(
    name: str, capability: CapabilityConfig, questions: int, *, limits: Limits, most: int | None = None, draw: int = 0
) -> Prompts:
    """What the capability is measured on: `questions` at most, the first `most` of them."""
    count = min(questions, most or questions)
    data = held_out_data(capability)
    if data is not None:
        return open_benchmark(name, data, count, limits=limits, draw=draw)
    rows = open_prompts(name, capability.data, seed=SEED, limits=limits)
    assert isinstance(rows, PromptSet)
    if (given := _given_up(rows, questions)) == 0:
        raise UserError(
            f"capabilities.{name}.data: {len(rows)} rows are too few to hold any out; set capabilities.{name}.held_out"
        )
    return _lowest(rows, min(given, count))


def trained(name: str, capability: CapabilityConfig, questions: int, *, seed: int, limits: Limits) -> Prompts:
    """The prompts of the capability without those that it is measured on."""
    rows = open_prompts(name, capability.data, seed=seed, limits=limits)
    if held_out_data(capability) is not None or not isinstance(rows, PromptSet):
        return rows
    held = _first(rows, _given_up(rows, questions))
    return _chosen(rows, [index for index, digest in enumerate(rows.digests) if digest not in held])


def held_out_data(capability: CapabilityConfig) -> MiniatureData | DatasetData | None:
    """What the recipe names, else the miniature's validation split; None: rows of the training data itself."""
    data = capability.data
    if capability.held_out is None and isinstance(data, MiniatureData):
        other = "test" if data.split == "validation" else "validation"
        return MiniatureData(type="miniature", name=data.name, size=_PLENTY, level=data.level, split=other)
    return capability.held_out


def open_benchmark(
    name: str, data: MiniatureData | DatasetData, most: int | None, *, limits: Limits, draw: int = 0
) -> Prompts:
    """Questions to measure on; with `most`, so many of them, of a data set chosen by their content. The miniature
    makes up others for another `draw`."""
    if isinstance(data, MiniatureData) and most is not None:
        data = data.model_copy(update={"size": min(data.size, most)})
    prompts = open_prompts(name, data, seed=SEED + draw, limits=limits)
    if most is None or not isinstance(prompts, PromptSet):
        return prompts
    return _lowest(prompts, most)


def _given_up(rows: PromptSet, questions: int) -> int:
    return min(questions, len(set(rows.digests)) // _LEAST_ROWS)


def _first(rows: PromptSet, count: int) -> set[bytes]:
    """A hash of a row is as good as chance, and does not change with the rows around it."""
    return set(sorted(set(rows.digests))[:count])


def _lowest(rows: PromptSet, count: int) -> PromptSet:
    """The rows of the lowest hashes, each once."""
    first = _first(rows, count)
    index_of = {digest: index for index, digest in reversed(list(enumerate(rows.digests)))}
    return _chosen(rows, [index_of[digest] for digest in sorted(first)])


def _chosen(rows: PromptSet, indices: list[int]) -> PromptSet:
    places = tuple(rows.places[index] for index in indices)
    return replace(rows, places=places, digests=tuple(rows.digests[index] for index in indices))
