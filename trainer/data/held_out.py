"""Which questions a capability is measured on, and which are left to train on: never the same.

They are the same for every seed of a run, so that runs can be compared question by question. A data set with no
`held_out` of its own gives up a few of its rows, chosen by their content, at most a fifth of them; rows that are equal
go the same way.
"""

from adapters.errors import UserError
from service.media import Limits
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.recipe import CapabilityConfig, Data, DatasetData, MiniatureData, ReasoningGymData

SEED = 1000
"""The seed of the questions that the miniature makes up to measure on: the same for all runs, whatever theirs is."""
_PLENTY = 1_000_000
"""The size of the validation split of generated questions, which has no end: `evaluation.questions` says how many
are taken."""
_ROWS_FOR_EACH = 5
"""Rows of a data set for each that is held out: a small one keeps four fifths to train on."""


def held_out_prompts(
    name: str, capability: CapabilityConfig, questions: int, *, limits: Limits, most: int | None = None, draw: int = 0
) -> Prompts:
    """The prompts that the capability is measured on: `questions` at most, the first `most` of them."""
    count = min(questions, most or questions)
    data = held_out_data(capability)
    if data is not None:
        return open_benchmark(name, data, count, limits=limits, draw=draw)
    rows = open_prompts(name, capability.data, seed=SEED, limits=limits)
    assert isinstance(rows, PromptSet)
    if (given_up := _given_up(rows, questions)) == 0:
        raise UserError(
            f"capabilities.{name}.data: {len(rows)} rows are too few to hold any out; set capabilities.{name}.held_out"
        )
    return _lowest(rows, min(given_up, count))


def training_prompts(name: str, capability: CapabilityConfig, questions: int, *, seed: int, limits: Limits) -> Prompts:
    """The prompts of the capability without those that it is measured on."""
    rows = open_prompts(name, capability.data, seed=seed, limits=limits)
    if held_out_data(capability) is not None or not isinstance(rows, PromptSet):
        return rows
    # All that may be measured on, however few of them a measurement takes.
    held_out = set(_lowest_digests(rows, _given_up(rows, questions)))
    return rows.select([index for index, digest in enumerate(rows.digests) if digest not in held_out])


def held_out_data(capability: CapabilityConfig) -> Data | None:
    """The data that the recipe names, else the validation split of generated questions; None: rows of the training
    data."""
    data = capability.data
    if capability.held_out is None and isinstance(data, MiniatureData):
        split = "test" if data.split == "validation" else "validation"  # never the one that is trained on
        return MiniatureData(type=data.type, name=data.name, size=_PLENTY, level=data.level, split=split)
    if capability.held_out is None and isinstance(data, ReasoningGymData):
        split = "train" if data.split == "validation" else "validation"
        return data.model_copy(update={"size": _PLENTY, "seed": None, "split": split})
    return capability.held_out


def open_benchmark(name: str, data: Data, most: int | None, *, limits: Limits, draw: int = 0) -> Prompts:
    """Questions to measure on; with `most`, so many of them, of a data set chosen by their content. The miniature
    makes up others for another `draw`."""
    if not isinstance(data, DatasetData) and most is not None:  # made up at load: no more than are wanted
        data = data.model_copy(update={"size": min(data.size, most)})
    prompts = open_prompts(name, data, seed=SEED + draw, limits=limits)
    if most is None or not isinstance(prompts, PromptSet):
        return prompts
    return _lowest(prompts, most)


def _given_up(rows: PromptSet, questions: int) -> int:
    return min(questions, len(set(rows.digests)) // _ROWS_FOR_EACH)


def _lowest_digests(rows: PromptSet, count: int) -> list[bytes]:
    # A hash is as good as chance, and does not change with the rows around it. Equal rows have one and go together:
    # a copy that stayed behind would be trained on.
    return sorted(set(rows.digests))[:count]


def _lowest(rows: PromptSet, count: int) -> PromptSet:
    """The rows of the lowest hashes, each once."""
    index_of = {digest: index for index, digest in reversed(list(enumerate(rows.digests)))}  # the first of equal rows
    return rows.select([index_of[digest] for digest in _lowest_digests(rows, count)])
