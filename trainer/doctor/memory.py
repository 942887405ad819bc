"""How much memory a run takes, from the shape of its base: arithmetic only, in bytes.

Weights, adapters and the KV cache are exact. Activations assume that the trainer keeps the input of each layer and
computes the rest again, one layer at a time, and that log-probabilities are made in chunks of tokens; the engine's
share is what vLLM was seen to take beside weights and cache. Video towers, fragmentation and other programs are left
out, so a run wants a few GiB to spare.
"""

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
"""Tokens whose log-probabilities are made at once, in the engine and in a trainer on a GPU."""
_CPU_CHUNK = 64
"""The same in a trainer on CPU."""
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
    experts: int = 1
    """The MLPs of a layer, each of `intermediate`; above 1 with a router."""
    active_experts: int = 1
    """Those of them that a token goes through."""

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

    def layer_weights(self, experts: float) -> float:
        """Weights of a layer's products, with so many of its experts."""
        sizes = [inputs * outputs for inputs, outputs in self.projections]
        router = self.hidden * self.experts if self.experts > 1 else 0
        return sum(sizes[:4]) + experts * sum(sizes[4:]) + router

    @property
    def layer_parameters(self) -> int:
        norms = 2 * self.hidden + 2 * self.head_dim * self.has_head_norms  # before attention and MLP; of queries, keys
        return int(self.layer_weights(self.experts)) + norms

    @property
    def parameters(self) -> int:
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        # `hidden`: the last norm
        return self.layers * self.layer_parameters + embeddings + self.hidden + self.vision_parameters


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """What one thing takes in one process."""

    process: str
    name: str
    bytes: int
    note: str = ""


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
    "Qwen/Qwen3-VL-32B-Instruct": _qwen(5120, 64, 64, 25_600, 595_266_800, tied=False),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": Shape(
        2048, 48, 32, 4, 128, 768, 151_936, tied=False, vision_parameters=538_631_408, experts=128, active_experts=8
    ),
}


def lora_parameters(shape: Shape, rank: int, modules: Collection[str] = TARGET_MODULES) -> int:
    names = set(modules) & set(adapted_modules(shape))
    sizes = [sum(size) for name, size in zip(TARGET_MODULES, shape.projections, strict=True) if name in names]
    return shape.layers * rank * sum(sizes)


def slot_parameters(shape: Shape, rank: int, tensor_parallel: int) -> int:
    """Parameters of a slot on each card of an engine core: only the side that lies beside a weight's split is split.

    q, k, v, gate, up: A [rank, inputs] whole, B [outputs / T, rank]       o, down: A [rank, inputs / T], B whole
    """
    split_inputs = {"o_proj", "down_proj"}
    sizes = [
        inputs / tensor_parallel + outputs if name in split_inputs else inputs + outputs / tensor_parallel
        for name, (inputs, outputs) in zip(TARGET_MODULES, shape.projections, strict=True)
        if name in adapted_modules(shape)
    ]
    return int(shape.layers * rank * sum(sizes))


def adapted_modules(shape: Shape) -> tuple[str, ...]:
    """Those that an adapter can sit on: with experts the four of attention."""
    return TARGET_MODULES if shape.experts == 1 else TARGET_MODULES[:4]


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
    tensor_parallel: int = 1,
) -> tuple[MemoryPart, ...]:
    """`element` = bytes of a served parameter, `sequences` = how many are sampled together. With `tensor_parallel` T
    each card of an engine core holds a T-th of the weights, of the heads and of an MLP's inside."""
    weights = -(-shape.parameters * element // tensor_parallel)
    heads = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / tensor_parallel
    width = shape.active_experts * shape.intermediate / tensor_parallel
    # One layer's activations, of all tokens of a step: the engine keeps no others.
    step = int(batched_tokens * (3 * width + 4 * shape.hidden + heads) * element)
    # Logits of a chunk of prompt tokens; and for sampling three copies in float32 of a row for each sequence.
    sampling = shape.vocabulary * (_CHUNK * element + sequences * 3 * 4)
    cache = int(kv_cache_gib * GIB)
    # A card has whole heads: with more cards than heads of keys, some of them have the same.
    cached = kv_bytes_per_token(shape, element) // min(tensor_parallel, shape.kv_heads)
    return (
        MemoryPart("service", "base weights", weights, f"{shape.parameters / 1e9:.3g} G parameters"),
        MemoryPart(
            "service",
            "adapter slots",
            slots * slot_parameters(shape, slot_rank, tensor_parallel) * element,
            f"{slots} slots of rank {slot_rank}",
        ),
        MemoryPart(
            "service",
            "runtime, graphs, activations",
            (_ENGINE_ON_GPU if on_gpu else _ENGINE_ON_CPU) + step + sampling,
            f"{batched_tokens:,} tokens a step, {sequences} sequences",
        ),
        MemoryPart("service", "KV cache", cache, f"{cache // cached:,} tokens"),
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
    shards: int = 1,
) -> tuple[MemoryPart, ...]:
    """What one process of a worker with all branches takes: one base copy, gradients of the one branch that updates. Of
    several `shards` each has its part of every layer, and two whole ones: that which is computed, and the next."""
    adapter = lora_parameters(shape, rank, modules)
    queries = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    # With recomputation: the input of each layer is kept, and the inside of one layer at a time, once forward and once
    # as gradients.
    layer_inputs = tokens * shape.layers * shape.hidden * element
    width = shape.active_experts * shape.intermediate
    one_layer = 2 * tokens * (3 * width + 6 * shape.hidden + 2 * queries) * element
    layers = shape.layers * shape.layer_parameters
    base = shape.parameters if shards == 1 else shape.parameters - layers + -(-layers // shards)
    gathered = 0 if shards == 1 else 2 * shape.layer_parameters
    log_probs = 2 * (_CHUNK if on_gpu else _CPU_CHUNK) * shape.vocabulary * 4  # logits in float32, and their gradients
    runtime = _WORKER_ON_GPU if on_gpu else _WORKER_ON_CPU
    return (
        MemoryPart("worker", "base copy", (base + gathered) * element, f"{(base + gathered) / 1e9:.3g} G parameters"),
        MemoryPart(
            "worker",
            "masters, moments, gradients",
            trained_bytes(adapter, branches),
            f"{branches} x {adapter / 1e6:.3g} M parameters of rank {rank}",
        ),
        MemoryPart(
            "worker",
            "runtime, activations",
            runtime + layer_inputs + one_layer + log_probs,
            f"{tokens:,} packed tokens",
        ),
    )


def trained_bytes(adapter_parameters: int, branches: int) -> int:
    """Masters and moments of every branch, gradients of the one that updates."""
    return adapter_parameters * (branches * (_MASTER + _MOMENTS) + _GRADIENT)


def total(parts: Sequence[MemoryPart]) -> int:
    return sum(part.bytes for part in parts)


def store_bytes(adapter_parameters: int, *, branches: int, keep_last: int, phase_ends: int) -> int:
    """The most that a run keeps: masters of `keep_last` revisions and phase ends, moments of 2 and of phase ends."""
    masters = (keep_last + phase_ends) * adapter_parameters * _MASTER
    moments = (2 + phase_ends) * adapter_parameters * _MOMENTS
    return branches * (masters + moments)
