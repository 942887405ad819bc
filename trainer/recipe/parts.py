"""The sections of a recipe that do not know of each other.

Left out: which steps are made and who learns from whom (`method`), what is measured (`measuring`), and what holds
between sections (`Recipe`).
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from adapters.names import check_name, is_start

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
REWARDS = ("math", "choice", "numeric", "exact")

_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def _check_start(value: str) -> str:
    if not is_start(value):
        raise ValueError(f'{value!r} is no start; take "base", or a fork as BRANCH@REVISION ("text-expert@120")')
    return value


def _check_reward(value: str) -> str:
    if value not in REWARDS and not _FUNCTION.match(value):
        kinds = ", ".join(REWARDS)
        raise ValueError(f"{value!r} is no reward; take one of {kinds}, or a function of your own as module:function")
    return value


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression ({error}); mend it or remove it") from None
    return value


def _check_group(value: int) -> int:
    if value < 2:
        raise ValueError(f"a group of {value} has no baseline, every advantage would be 0; take at least 2")
    return value


Name = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """Frozen, closed to unknown keys; the docstring under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=False
    )


class BaseConfig(Section):
    """The frozen model under every adapter."""

    name: str
    """`miniature`, a folder, or a name on the Hugging Face hub."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the trainer's copy; the adapters' masters are float32 whatever it is."""


class LoraConfig(Section):
    """The adapters: one shape for all branches, on the seven projections of the language model."""

    rank: int = Field(default=64, ge=1, le=ENGINE_RANKS[-1])
    """Inner dimension."""
    alpha: int = Field(default=64, ge=1)
    """Scale times rank. alpha / rank is a power of two, so that scaling rounds nothing."""
    shared_init: bool = True
    """All branches start from the same random A (B is 0): identical parameters, as the method asks."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _scale_is_a_power_of_two(self) -> Self:
        doubled = [self.rank << bits for bits in range(10)]
        halved = [self.rank >> bits for bits in range(1, 10) if self.rank % (1 << bits) == 0]
        alphas = (*doubled, *halved)
        if self.alpha not in alphas:
            nearest = min(alphas, key=lambda alpha: abs(alpha - self.alpha))
            raise ValueError(f"alpha {self.alpha} / rank {self.rank} is no power of two; take alpha = {nearest}")
        return self


class EngineConfig(Section):
    """vLLM: what it may hold and what it may be asked for."""

    kv_cache_gib: float = Field(default=30.0, gt=0)
    """KV cache in GiB, a fixed amount: the card is shared with the worker, so never a share of it."""
    max_loras: int = Field(default=8, ge=2)
    """Adapter slots on the card. 2 a branch (one served, one arriving) + 2 keep a publish from waiting."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences decoded together."""
    max_num_batched_tokens: int = Field(default=8192, ge=256)
    """Tokens in one engine step; bounds the memory of prompt log-probabilities."""
    top_k: int = Field(default=20, ge=1)
    """The most `top_k` that a score request may ask for."""
    dtype: Literal["base", "bfloat16", "float32"] = "base"
    """Of the served copy; `base` takes `base.dtype`."""
    adapter_cache: str = "/dev/shm"
    """Where the served copies of the adapters lie, in a folder of the service's own."""


class MediaConfig(Section):
    """Limits that the engine and the trainer share: both see the same pixels."""

    max_images: int = Field(default=8, ge=0)
    """Images in one prompt."""
    max_videos: int = Field(default=1, ge=0)
    """Videos in one prompt."""
    image_min_pixels: int = Field(default=65_536, ge=1)
    """A smaller image is scaled up to this."""
    image_max_pixels: int = Field(default=1_048_576, ge=1)
    """A larger image is scaled down to this."""
    fps: float = Field(default=2.0, gt=0)
    """Frames taken from a second of video."""
    min_frames: int = Field(default=4, ge=2)
    """Frames of one video; a shorter one is sampled more densely."""
    max_frames: int = Field(default=128, ge=2)
    """Frames of one video; a longer one is sampled more thinly."""
    video_min_pixels: int = Field(default=4096, ge=1)
    """A smaller frame is scaled up to this."""
    video_max_pixels: int = Field(default=262_144, ge=1)
    """A larger frame is scaled down to this."""

    @model_validator(mode="after")
    def _limits_are_ranges(self) -> Self:
        for kind, low, high in (
            ("image_{}_pixels", self.image_min_pixels, self.image_max_pixels),
            ("video_{}_pixels", self.video_min_pixels, self.video_max_pixels),
            ("{}_frames", self.min_frames, self.max_frames),
        ):
            if low > high:
                raise ValueError(f"{kind.format('min')} {low} is above {kind.format('max')} {high}; lower the first")
        return self


class MiniatureData(Section):
    """Questions that the miniature makes up, from the run's seed."""

    type: Literal["miniature"]
    name: str
    """Which toy capability: text, image, video; with a base that has learnt them shapes, order or one of your own."""
    size: int = Field(default=2000, ge=1)
    """Different prompts."""
    level: Literal[1, 2] | None = None
    """Steps of arithmetic in a question; null = both."""
    split: Literal["train", "validation", "test"] = "train"
    """The splits share no question."""


class Columns(Section):
    """Which column of a data set holds what. A mark such as `<image>` in the prompt says where the next image goes."""

    prompt: str = "prompt"
    """What is asked."""
    answer: str = "answer"
    """The right answer, bare."""
    images: str | None = None
    """One image or a list, as bytes or as paths under `media_root`; null = none."""
    videos: str | None = None
    """One video or a list, likewise."""


class DatasetData(Section):
    """Rows of a Hugging Face data set or of a file (jsonl, json, csv, parquet)."""

    type: Literal["dataset"]
    name: str
    """A name on the hub, a file or a folder."""
    subset: str | None = None
    """The configuration of the data set, where it has several."""
    files: str | None = None
    """The file of the data set to take, where it has several; may be a pattern."""
    split: str = "train"
    """The split of the data set."""
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1)
    """Take the first so many rows; null = all."""
    system: str | None = None
    """A system message before each prompt."""
    suffix: str = ""
    """Added to the end of each prompt, such as how to give the answer."""
    media_root: str | None = None
    """The folder that paths of images and videos start from; nothing outside it is read."""
    on_unreadable: Literal["error", "drop"] = "error"
    """What to do with a row that cannot be used, such as one with a damaged image; dropped rows are counted."""
    frames_fps: float = Field(default=2.0, gt=0)
    """Frames a second of a video that is given as a list of images."""


Data = Annotated[MiniatureData | DatasetData, Field(discriminator="type")]


class RewardConfig(Section):
    """How an answer is checked."""

    kind: Annotated[str, AfterValidator(_check_reward)]
    """math, choice, numeric, exact, or a function of your own as `module:function`."""
    format_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the reward that is for giving the answer in the asked form."""
    format_pattern: Annotated[str, AfterValidator(_check_pattern)] | None = None
    """What a completion in the asked form matches from end to end; null = it has exactly one full \\boxed{}."""
    tolerance: float = Field(default=0.0, ge=0)
    """`numeric`: right is an error of at most this, times the answer where that is above 1."""
    deadline_s: float = Field(default=60.0, gt=0)
    """For one batch. What is not scored by then is unscorable and leaves its group."""

    @model_validator(mode="after")
    def _tolerance_is_read(self) -> Self:
        if self.tolerance and self.kind != "numeric":
            raise ValueError('tolerance is read with kind = "numeric" only; set that kind or remove tolerance')
        return self


class CapabilityConfig(Section):
    """Something to get good at: data and a reward."""

    data: Data
    reward: RewardConfig
    held_out: Data | None = None
    """Data to measure on; null = the miniature's validation split, or `evaluation.questions` rows not trained on."""


class BranchConfig(Section):
    """One adapter being trained."""

    capabilities: tuple[str, ...] = Field(min_length=1)
    """What it trains on; several make it a mixed branch."""
    init: Annotated[str, AfterValidator(_check_start)] = "base"
    """`base` (B = 0), or a fork of a revision in the store, such as `text-expert@120`."""


class MergeConfig(Section):
    """How the branches become one model at the end."""

    method: Literal["none", "mean", "ties", "svd"] = "mean"
    """mean: the exact mean of the weight deltas. svd: that, back at the rank. none: branches only."""
    weights: dict[str, float] = {}
    """Of the branches; empty = equal."""
    scale: float = Field(default=1.0, gt=0)
    """Times the merged delta."""


class LossConfig(Section):
    """The clipped objective, the same for rewards and for teachers."""

    normalise: Literal["sequence", "token"] = "sequence"
    """Mean over tokens, then over sequences; or over all tokens of a part alike (DAPO)."""
    std: bool = True
    """Divide advantages by the group's standard deviation; false is Dr. GRPO."""
    eps_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped at 1 - this."""
    eps_high: float = Field(default=0.28, gt=0)
    """The ratio is clipped at 1 + this."""
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser updates on one batch. With 1 the ratio is 1 and the clip does nothing."""
    importance_weight: bool = True
    """Weight tokens by trainer / engine probability, for where the two differ."""
    importance_cap: float = Field(default=2.0, ge=1)
    """The most such a weight can be."""
    delta_clamp: float = Field(default=10.0, gt=0)
    """The most that one token's teacher signal can be, either way."""
    teacher_signal: Literal["sampled", "top-k"] = "sampled"
    """The sampled token's log-ratio, or the reverse KL over the teacher's likeliest tokens."""
    teacher_top_k: int = Field(default=10, ge=1)
    """`top-k`: how many; what they leave over is one bin more."""


class RolloutConfig(Section):
    """What a branch samples in one step."""

    prompts: int = Field(default=32, ge=1)
    """Prompts in a step."""
    group_size: Annotated[int, AfterValidator(_check_group)] = 8
    """Completions of each prompt, compared with each other."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Log-probabilities are those at 1: with another value the samples are not the policy's own."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Likewise."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """After image and video tokens are filled in. A longer prompt is dropped at load and counted, never cut."""
    max_completion_tokens: int = Field(default=2048, ge=1)
    """A completion that reaches it is truncated and keeps its reward."""
    opd_prompts: int | None = Field(default=None, ge=1)
    """Prompts for each teacher in an OPD step; null = `prompts`."""
    opd_group_size: int | None = Field(default=None, ge=1)
    """Completions of each of those; null = `group_size`."""

    @property
    def max_model_len(self) -> int:
        """Of the engine, which refuses to score a sequence as long as itself."""
        return self.max_prompt_tokens + self.max_completion_tokens + 1

    @property
    def opd_batch(self) -> tuple[int, int]:
        """Prompts and completions of each, for one teacher."""
        return self.opd_prompts or self.prompts, self.opd_group_size or self.group_size


class OptimiserConfig(Section):
    """AdamW, one for each branch, on float32 masters."""

    lr: float = Field(default=1e-5, gt=0)
    """Learning rate. 1e-5 is for LoRA; all weights want about a tenth."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Pulls A and B to 0, apart from the gradient."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two moments."""
    grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which lr rises from 0; afterwards it is fixed."""


class BudgetConfig(Section):
    """What a run may use. Changes its speed and memory, not its result."""

    tokens_per_micro_batch: int = Field(default=16_384, ge=64)
    """Packed tokens in one forward and backward pass."""
    gradient_checkpointing: bool = True
    """Keep only the inputs of layers for the backward pass and compute the rest again: less memory, a third slower."""
    prefetch: int = Field(default=1, ge=0, le=8)
    """Branches whose next rollouts already run while one updates; 0 = one thing at a time. Several fill an engine that
    small batches leave idle."""
    keep_last: int = Field(default=4, ge=2)
    """Revisions of a branch that stay in the store, beside heads, phase ends and those that the plan still names."""


class TrackingConfig(Section):
    """Where metrics go beside the run's own JSONL files."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers; each must be installed."""
    project: str = "coevo"
    """Under which name they file the run."""


def engine_rank(rank: int) -> int:
    """The smallest `max_lora_rank` of the engine that serves `rank`."""
    for size in ENGINE_RANKS:
        if size >= rank:
            return size
    raise ValueError(f"the engine serves no adapter above rank {ENGINE_RANKS[-1]}, this one has {rank}")
