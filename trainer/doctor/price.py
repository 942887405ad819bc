"""What a run takes of a card, in hours: from the update that was measured on an H100, and from data sheets.

Everything is as long as it may be, and happens one thing after another. Two rates are known.
Matrix products reach a share of the card's bfloat16 FLOP/s: measured for updates, and taken for scores and prompts,
which are the same products. Sampling reads the weights and the KV cache once for each token of all sequences: nothing
of ours has measured that on a GPU, so it is as fast as the memory on the data sheet, which is the best that it can be.

On several cards (`cards`) each thing takes its part of the time on one: sampling and scoring on those of the engine,
updates on those of the workers. That is the best that they can do.

Left out: the vision tower, exams, the merge, starting, and what the network takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.doctor.cards import ONE_CARD, Spread
from trainer.doctor.memory import GIB, Shape, kv_bytes_per_token, lora_parameters

MEASURED = "h100"
SOURCE = "bench/results/gpu_step.json"
SHARE = 0.252
"""The part of the dense bfloat16 FLOP/s that updates with compiled layers reach: the less of two lengths measured."""


@dataclass(frozen=True, slots=True)
class DataSheet:
    """What the maker of a card says of it."""

    name: str
    flops: float
    """Dense bfloat16 FLOP/s, without sparsity."""
    bandwidth: float
    """Bytes/s of its memory."""
    gib: float
    """The memory that programs find on it."""


CARDS = {
    "h100": DataSheet("NVIDIA H100 SXM, 80 GB", 989e12, 3.35e12, 79),
    "h200": DataSheet("NVIDIA H200 SXM, 141 GB", 989e12, 4.8e12, 139),
    "a100": DataSheet("NVIDIA A100 SXM, 80 GB", 312e12, 2.039e12, 79),
    "l40s": DataSheet("NVIDIA L40S, 48 GB", 362e12, 0.864e12, 44),
    "rtx-4090": DataSheet("NVIDIA GeForce RTX 4090, 24 GB", 165e12, 1.008e12, 23),
}


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its completions, all as long as they may be."""

    prompt: int
    completion: int
    size: int
    """How many completions."""
    teachers: int
    """How many score them. For each of them the student does, too."""

    @property
    def tokens(self) -> int:
        """Packed: the completions share their prompt, in an update as in the engine's prefix cache."""
        return self.prompt + self.size * self.completion

    @property
    def pairs(self) -> int:
        """Tokens with one that they attend to: within the prompt, and from each completion to it and to itself."""
        # Half a square: a token attends to those before it alone.
        inner = self.prompt**2 + self.size * self.completion**2
        return inner // 2 + self.size * self.completion * self.prompt


@dataclass(frozen=True, slots=True)
class Engine:
    """What bounds how many sequences are sampled together, all cores together."""

    sequences: int
    kv_cache_gib: float
    """The cache of each card."""


@dataclass(frozen=True, slots=True)
class Hours:
    sampling: float = 0
    scoring: float = 0
    updates: float = 0

    @property
    def total(self) -> float:
        return self.sampling + self.scoring + self.updates


def model_flops(shape: Shape, rank: int, *, tokens: int, pairs: int, predicted: int) -> int:
    """Forward and backward: 2 a weight and token, and 2 back through it, or 4 if it learns; 12 a pair and channel."""
    weights, channels, output = _sizes(shape)
    return tokens * (4 * weights + 6 * lora_parameters(shape, rank)) + 12 * pairs * channels + 4 * predicted * output


def forward_flops(shape: Shape, *, tokens: int, pairs: int, predicted: int) -> int:
    """2 a weight and token, 4 a pair and channel: queries by keys, then weights by values."""
    weights, channels, output = _sizes(shape)
    return 2 * tokens * weights + 4 * pairs * channels + 2 * predicted * output


def hours(
    groups: Mapping[Group, int],
    shape: Shape,
    card: DataSheet,
    engine: Engine,
    *,
    rank: int,
    updates: int = 1,
    spread: Spread = ONE_CARD,
) -> Hours:
    """The hours of so many groups of each kind, in bfloat16. `updates`: how often a batch is learnt from."""
    cores, cards = spread.data_parallel, spread.tensor_parallel
    # Cards of a core are as one that is so many times as fast, with so many times the cache; cores share the sequences.
    core = replace(card, flops=cards * card.flops, bandwidth=cards * card.bandwidth)
    engine = Engine(-(-engine.sequences // cores), cards * engine.kv_cache_gib)
    sampling = scoring = learning = 0.0
    for group, count in groups.items():
        predicted = group.size * group.completion
        # The engine reads a prompt once for its whole group, and predicts one token of it.
        prompt = forward_flops(shape, tokens=group.prompt, pairs=group.prompt**2 // 2, predicted=1)
        score = forward_flops(shape, tokens=group.tokens, pairs=group.pairs, predicted=predicted)
        learn = model_flops(shape, rank, tokens=group.tokens, pairs=group.pairs, predicted=predicted)
        sampling += count * (prompt / (SHARE * core.flops) + predicted * token_seconds(group, shape, core, engine))
        # Teacher and student: both numbers are to come from the same engine.
        scoring += count * 2 * group.teachers * score / (SHARE * core.flops)
        learning += count * updates * learn / (SHARE * card.flops)
    engine_hours, worker_hours = 3600 * cores, 3600 * spread.worker_cards
    return Hours(sampling / engine_hours, scoring / engine_hours, learning / worker_hours)


def token_seconds(group: Group, shape: Shape, card: DataSheet, engine: Engine) -> float:
    """The time of one sampled token, if as many sequences are sampled together as there is room for.

    time of a step = max(bytes read / bandwidth, products / their rate),
    bytes read     = 2 x weights + sequences x context x bytes of a token in the KV cache.
    """
    context = group.prompt + group.completion / 2  # the mean over a completion that is as long as it may be
    cached = context * kv_bytes_per_token(shape, _BFLOAT16)
    sequences = max(1, min(engine.sequences, int(engine.kv_cache_gib * GIB / cached)))
    weights, channels, output = _sizes(shape)
    # Of E experts with A for each token, that of nobody among n: (1 - A/E)^n. The others are read.
    experts = shape.experts * (1 - (1 - shape.active_experts / shape.experts) ** sequences)
    # Weights once for all sequences, which is why many together are cheaper; the cache of each for itself.
    read = _BFLOAT16 * (shape.layers * shape.layer_weights(experts) + output) + sequences * cached
    products = sequences * (2 * (weights + output) + 4 * context * channels)
    return max(read / card.bandwidth, products / (SHARE * card.flops)) / sequences


_BFLOAT16 = 2
"""Bytes of a number."""


def _sizes(shape: Shape) -> tuple[int, int, int]:
    """Weights of the layers that a token goes through, channels of all heads, weights of the output matrix."""
    weights = shape.layers * int(shape.layer_weights(shape.active_experts))
    return weights, shape.layers * shape.heads * shape.head_dim, shape.hidden * shape.vocabulary
