"""Which numbers of a recipe to lower, and how far, when it does not fit: each with what a unit of it costs."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from trainer.doctor.memory import (
    GIB,
    Shape,
    kv_bytes_per_token,
    lora_parameters,
    slot_parameters,
    total,
    trained_bytes,
    worker_parts,
)
from trainer.recipe import TARGET_MODULES


@dataclass(frozen=True, slots=True)
class Knob:
    """A number of the recipe that can be lowered, best first in `choices` (which fall), and what each unit costs."""

    path: str
    now: float
    choices: tuple[float, ...]
    bytes_per_unit: float


@dataclass(frozen=True, slots=True)
class Lowered:
    path: str
    now: float
    to: float


def service_knobs(
    shape: Shape,
    *,
    element: int,
    kv_cache_gib: float,
    slots: int,
    branches: int,
    rank: int,
    model_len: int,
    tensor_parallel: int = 1,
) -> tuple[Knob, ...]:
    """What makes the service smaller, down to a cache of one full sequence and a slot a branch + 1."""
    one_sequence = model_len * kv_bytes_per_token(shape, element) / min(tensor_parallel, shape.kv_heads) / GIB
    # In steps of half a GiB: a number that a person would write.
    halves = range(math.ceil(2 * kv_cache_gib) - 1, math.ceil(2 * one_sequence) - 1, -1)
    caches = tuple(half / 2 for half in halves)
    slot = slot_parameters(shape, rank, tensor_parallel) * element
    return (
        Knob("engine.kv_cache_gib", kv_cache_gib, caches, GIB),
        Knob("engine.max_loras", slots, tuple(range(slots - 1, branches, -1)), slot),
        Knob("lora.rank", rank, _halvings(rank), slots * slot_parameters(shape, 1, tensor_parallel) * element),
    )


def worker_knobs(
    shape: Shape,
    *,
    element: int,
    tokens: int,
    rank: int,
    branches: int,
    sequence: int,
    modules: Collection[str] = TARGET_MODULES,
) -> tuple[Knob, ...]:
    """What makes the worker smaller, down to micro-batches of one full sequence."""
    # A token's share is what the sum grows by: all of it is linear in tokens.
    without, with_token = (
        total(worker_parts(shape, element=element, rank=rank, branches=branches, tokens=count, on_gpu=True))
        for count in (0, 1)
    )
    thousands = tuple(range((tokens - 1) // 1024 * 1024, sequence, -1024))
    choices = (*thousands, sequence) if sequence < tokens else ()
    states = trained_bytes(lora_parameters(shape, 1, modules), branches)
    return (
        Knob("budget.tokens_per_micro_batch", tokens, choices, with_token - without),
        Knob("lora.rank", rank, _halvings(rank), states),
    )


def _halvings(rank: int) -> tuple[float, ...]:
    # Not below 8, the smallest rank but 1 that the engine has slots of.
    return tuple(rank >> bits for bits in range(1, 7) if rank >> bits >= 8)


def shared_knobs(knobs: Sequence[Knob]) -> tuple[Knob, ...]:
    """Knobs of processes that share a card: one knob a path, the most harmless first."""
    order = ("engine.kv_cache_gib", "budget.tokens_per_micro_batch", "engine.max_loras", "lora.rank")
    merged: list[Knob] = []
    for path in order:
        same = [knob for knob in knobs if knob.path == path]
        if same:
            cost = sum(knob.bytes_per_unit for knob in same)
            merged.append(Knob(path, same[0].now, same[0].choices, cost))
    return tuple(merged)


def lower(too_much: float, knobs: Sequence[Knob]) -> tuple[list[Lowered], float]:
    """Which numbers to lower, and how far, until `too_much` bytes are gone; and the bytes that no number removes."""
    lowered: list[Lowered] = []
    for knob in knobs:
        if too_much <= 0:
            break
        enough = [choice for choice in knob.choices if (knob.now - choice) * knob.bytes_per_unit >= too_much]
        if enough or knob.choices:
            to = enough[0] if enough else knob.choices[-1]
            # The first that is enough is the largest: choices fall.
            lowered.append(Lowered(knob.path, knob.now, to))
            too_much -= (knob.now - to) * knob.bytes_per_unit
    return lowered, max(too_much, 0.0)
