"""How much memory a run takes, from the shape of its base: arithmetic only, in bytes.

Weights, adapters and the KV cache are exact. Activations assume that the trainer keeps the input of each layer and
computes the rest again, one layer at a time, and that log-probabilities are made in chunks of tokens; the engine's
share is what vLLM was seen to take beside weights and cache. Video towers, fragmentation and other programs are left
out, so a run wants a few GiB to spare.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.architectures import architecture_of
from trainer.recipe import TARGET_MODULES

GIB = 2**30
SPARE = GIB
"""What should stay free beside everything that is counted here."""

_MASTER, _MOMENTS, _GRADIENT = 4, 8, 4
"""Bytes of a parameter that is trained, all in float32; moments are Adam's two."""
_CHUNK = 1024
"""Tokens whose log-probabilities are made at once, in the engine and in the trainer."""
# Seen: what a process takes beside everything that is counted here.
_ENGINE_ON_GPU = 2_500_000_000  # CUDA context and graphs
_WORKER_ON_GPU = 600_000_000  # CUDA context
_ENGINE_ON_CPU = 1_500_000_000  # two processes that have imported torch and vLLM
_WORKER_ON_CPU = 700_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """A base, as far as its memory goes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    """The output matrix is the embedding."""
    vision_parameters: int
    """0 without vision."""
    has_head_norms: bool = True
    """Norms of queries and keys, which Qwen3 has and Llama has not."""

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the seven that adapters sit on: q, k, v, o, gate, up, down."""
        # Not the hidden size: in a Qwen3 heads x head_dim may be more.
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.hidden, queries),
            (self.hidden, keys),
            (self.hidden, keys),
            (queries, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def parameters(self) -> int:
        norms = 2 * self.hidden + 2 * self.head_dim * self.has_head_norms  # before attention and MLP; of queries, keys
        layer = sum(inputs * outputs for inputs, outputs in self.projections) + norms
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden + self.vision_parameters  # `hidden`: the last norm


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What one thing takes in one process."""

    process: str
    name: str
    bytes: int
    note: str = ""


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


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of the checkpoint with this `config.json`."""
    architecture = architecture_of(dict(config))
    text = config["text_config"] if architecture.has_vision else config
    return Shape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"],
        tied=config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        vision_parameters=_vision_parameters(config["vision_config"]) if architecture.has_vision else 0,
        has_head_norms=architecture.model_type != "llama",
    )


def _vision_parameters(vision: Mapping[str, Any]) -> int:
    return vision_parameters(
        hidden=vision["hidden_size"],
        layers=vision["depth"],
        intermediate=vision["intermediate_size"],
        outputs=vision["out_hidden_size"],
        positions=vision["num_position_embeddings"],
        mergers=1 + len(vision["deepstack_visual_indexes"]),
        patch=vision["patch_size"] ** 2 * vision["temporal_patch_size"] * vision["in_channels"],
        merge=vision["spatial_merge_size"] ** 2,
    )


def vision_parameters(
    *, hidden: int, layers: int, intermediate: int, outputs: int, positions: int, mergers: int, patch: int, merge: int
) -> int:
    """Parameters of the vision tower. `patch` = values in a patch, `merge` = patches in a token."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs  # + 1: the bias, which the language model's projections have not

    norm, merged = 2 * hidden, merge * hidden
    attention = linear(hidden, 3 * hidden) + linear(hidden, hidden)
    layer = attention + linear(hidden, intermediate) + linear(intermediate, hidden) + 2 * norm
    merger = linear(merged, merged) + linear(merged, outputs)
    norms = norm + (mergers - 1) * 2 * merged  # the main merger norms before it merges, those of DeepStack after
    return linear(patch, hidden) + positions * hidden + layers * layer + mergers * merger + norms


def _qwen(hidden: int, layers: int, heads: int, intermediate: int, vision: int, *, tied: bool) -> Shape:
    return Shape(hidden, layers, heads, 8, 128, intermediate, 151_936, tied, vision)


KNOWN_SHAPES = {
    "Qwen/Qwen3-0.6B": _qwen(1024, 28, 16, 3072, 0, tied=True),
    "Qwen/Qwen3-1.7B": _qwen(2048, 28, 16, 6144, 0, tied=True),
    "Qwen/Qwen3-4B": _qwen(2560, 36, 32, 9728, 0, tied=True),
    "Qwen/Qwen3-8B": _qwen(4096, 36, 32, 12_288, 0, tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen(2048, 28, 16, 6144, 406_957_056, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen(2560, 36, 32, 9728, 415_347_712, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen(4096, 36, 32, 12_288, 576_388_336, tied=False),
}


def lora_parameters(shape: Shape, rank: int, modules: Collection[str] = TARGET_MODULES) -> int:
    sizes = [sum(size) for name, size in zip(TARGET_MODULES, shape.projections, strict=True) if name in modules]
    return shape.layers * rank * sum(sizes)


def kv_bytes_per_token(shape: Shape, element: int) -> int:
    # A key and a value for each layer and each head that has its own.
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * element


def service_parts(
    shape: Shape,
    *,
    element: int,
    slots: int,
    slot_rank: int,
    kv_cache_gib: float,
    batched_tokens: int,
    sequences: int,
    on_gpu: bool,
) -> tuple[MemoryPart, ...]:
    """`element` = bytes of a served parameter, `sequences` = how many are sampled together."""
    queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    # One layer's activations, of all tokens of a step: the engine keeps no others.
    step = batched_tokens * (3 * shape.intermediate + 4 * shape.hidden + queries) * element
    # Logits of a chunk of prompt tokens; and for sampling three copies in float32 of a row for each sequence.
    sampling = shape.vocabulary * (_CHUNK * element + sequences * 3 * 4)
    cache = int(kv_cache_gib * GIB)
    return (
        MemoryPart("service", "base weights", shape.parameters * element, f"{shape.parameters / 1e9:.3g} G parameters"),
        MemoryPart(
            "service",
            "adapter slots",
            slots * lora_parameters(shape, slot_rank) * element,
            f"{slots} slots of rank {slot_rank}",
        ),
        MemoryPart(
            "service",
            "runtime, graphs, activations",
            (_ENGINE_ON_GPU if on_gpu else _ENGINE_ON_CPU) + step + sampling,
            f"{batched_tokens:,} tokens a step, {sequences} sequences",
        ),
        MemoryPart("service", "KV cache", cache, f"{cache // kv_bytes_per_token(shape, element):,} tokens"),
    )


def worker_parts(
    shape: Shape,
    *,
    element: int,
    rank: int,
    branches: int,
    tokens: int,
    on_gpu: bool,
    modules: Collection[str] = TARGET_MODULES,
) -> tuple[MemoryPart, ...]:
    """What one worker with all branches takes: one base copy, gradients of the one branch that updates."""
    adapter = lora_parameters(shape, rank, modules)
    queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    # With recomputation: the input of each layer is kept, and the inside of one layer at a time, once forward and once
    # as gradients.
    layer_inputs = tokens * shape.layers * shape.hidden * element
    one_layer = 2 * tokens * (3 * shape.intermediate + 6 * shape.hidden + 2 * queries) * element
    log_probs = 2 * _CHUNK * shape.vocabulary * 4  # logits in float32, and their gradients
    runtime = _WORKER_ON_GPU if on_gpu else _WORKER_ON_CPU
    return (
        MemoryPart("worker", "base copy", shape.parameters * element, f"{shape.parameters / 1e9:.3g} G parameters"),
        MemoryPart(
            "worker",
            "masters, moments, gradients",
            adapter * (branches * (_MASTER + _MOMENTS) + _GRADIENT),
            f"{branches} x {adapter / 1e6:.3g} M parameters of rank {rank}",
        ),
        MemoryPart(
            "worker",
            "runtime, activations",
            runtime + layer_inputs + one_layer + log_probs,
            f"{tokens:,} packed tokens",
        ),
    )


def total(parts: Sequence[MemoryPart]) -> int:
    return sum(part.bytes for part in parts)


def store_bytes(adapter_parameters: int, *, branches: int, keep_last: int, phase_ends: int) -> int:
    """The most that a run keeps: masters of `keep_last` revisions and phase ends, moments of 2 and of phase ends."""
    masters = (keep_last + phase_ends) * adapter_parameters * _MASTER
    moments = (2 + phase_ends) * adapter_parameters * _MOMENTS
    return branches * (masters + moments)


def service_knobs(
    shape: Shape, *, element: int, kv_cache_gib: float, slots: int, branches: int, rank: int, model_len: int
) -> tuple[Knob, ...]:
    """What makes the service smaller, down to a cache of one full sequence and a slot a branch + 1."""
    one_sequence = model_len * kv_bytes_per_token(shape, element) / GIB
    # In steps of half a GiB: a number that a person would write.
    halves = range(math.ceil(2 * kv_cache_gib) - 1, math.ceil(2 * one_sequence) - 1, -1)
    caches = tuple(half / 2 for half in halves)
    slot = lora_parameters(shape, rank) * element
    return (
        Knob("engine.kv_cache_gib", kv_cache_gib, caches, GIB),
        Knob("engine.max_loras", slots, tuple(range(slots - 1, branches, -1)), slot),
        Knob("lora.rank", rank, _halvings(rank), slots * lora_parameters(shape, 1) * element),
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
    states = lora_parameters(shape, 1, modules) * (branches * (_MASTER + _MOMENTS) + _GRADIENT)
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
