"""The sections of a recipe for what stays the same through a run: the base, its adapters, the engine, media."""

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from adapters.names import check_name

TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGET_MODULES: tuple[TargetModule, ...] = get_args(TargetModule)
"""The projections that may have adapters, in every layer of the language model. The engine serves no others rightly."""
ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`; an adapter of a rank between two is served under the larger one."""

Name = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """A part of a recipe: frozen, closed to unknown keys; the docstring under a field is its description."""

    # Defaults are not validated again, and no number may be infinite or NaN: JSON has neither.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=False
    )


class BaseConfig(Section):
    """The frozen model under every adapter."""

    name: str
    """The model: `miniature`, `real`, a folder, or a name on the Hugging Face hub; a Qwen3-VL, or a Qwen3 or Llama for
    text."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """The precision of the trainer's copy. auto is bfloat16 on cards, and on a processor that has instructions for it.
    bfloat16 takes half the memory; the masters of adapters are float32 with either."""


class LoraConfig(Section):
    """The adapters: one shape for all branches, on projections of the language model."""

    rank: int = Field(default=64, ge=1, le=ENGINE_RANKS[-1])
    """The inner dimension of A and B. A higher one can learn more and takes more memory, in the engine too."""
    alpha: int = Field(default=64, ge=1)
    """The scale of a delta, times rank: delta = alpha / rank * B A. alpha / rank is a power of two, so that scaling
    rounds nothing."""
    shared_init: bool = True
    """The first A: the same random one in all branches (B is 0), as the method asks. With false each draws its own,
    and deltas of branches are nearly orthogonal."""
    modules: tuple[TargetModule, ...] = Field(
        default=TARGET_MODULES, exclude_if=lambda modules: modules == TARGET_MODULES
    )
    """The projections that an adapter changes, in every layer; all seven learn most. Fewer take less memory."""

    @field_validator("modules")
    @classmethod
    def _in_one_order(cls, modules: tuple[TargetModule, ...]) -> tuple[TargetModule, ...]:
        if not modules:
            raise ValueError(f"an adapter of nothing; name some of {', '.join(TARGET_MODULES)}")
        # The same projections in another order, or named twice, are the same run.
        return tuple(module for module in TARGET_MODULES if module in modules)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _scale_is_a_power_of_two(self) -> Self:
        doubled = [self.rank << bits for bits in range(10)]
        # alpha is an integer, so it can be halved only as often as rank can.
        halved = [self.rank >> bits for bits in range(1, 10) if self.rank % (1 << bits) == 0]
        alphas = (*doubled, *halved)
        if self.alpha not in alphas:
            nearest = min(alphas, key=lambda alpha: abs(alpha - self.alpha))
            raise ValueError(f"alpha {self.alpha} / rank {self.rank} is no power of two; take alpha = {nearest}")
        return self


class EngineConfig(Section):
    """vLLM: what it may hold and what it may be asked for."""

    kv_cache_gib: float = Field(default=30.0, gt=0)
    """The KV cache in GiB. A fixed amount, because the card is shared with the worker; with less, fewer sequences are
    decoded together."""
    max_loras: int = Field(default=8, ge=2)
    """The adapter slots on the card. 2 a branch (one served, one arriving) + 2 keep a publish from waiting, so 8 are
    for three branches."""
    max_num_seqs: int = Field(default=256, ge=1)
    """The most sequences that are decoded together. 256 are a batch of 32 prompts with 8 completions; more wait."""
    max_num_batched_tokens: int = Field(default=8192, ge=256)
    """The most tokens in one engine step. It bounds the memory of prompt log-probabilities: fewer take
    less."""
    top_k: int = Field(default=20, ge=1)
    """The most likeliest tokens that a score request may ask for. At least `loss.teacher_top_k` and
    `evaluation.overlap_top_k`."""
    dtype: Literal["base", "bfloat16", "float32"] = "base"
    """The precision of the served copy; `base` takes `base.dtype`, so that engine and trainer round alike."""
    adapter_cache: str = "/dev/shm"
    """The folder for the served copies of the adapters, in one of the service's own. Memory by default; name a disk
    where /dev/shm is small."""
    # How the engine is spread over cards: left out of files at 1, so that runs of before keep their names.
    data_parallel: int = Field(default=1, ge=1, exclude_if=lambda count: count == 1)
    """The engine cores, each with the whole base, every adapter and a KV cache of its own: as many times the rate, each
    on cards of its own. All prompts of a group meet the same core."""
    tensor_parallel: int = Field(default=1, ge=1, exclude_if=lambda count: count == 1)
    """The cards that hold one engine core together, for a base that does not fit on one. They are on one host."""


class MediaConfig(Section):
    """Limits that the engine and the trainer share: both see the same pixels."""

    max_images: int = Field(default=8, ge=0)
    """The most images in one prompt. A row with more is dropped and counted."""
    max_videos: int = Field(default=1, ge=0)
    """The most videos in one prompt. A row with more is dropped and counted."""
    image_min_pixels: int = Field(default=65_536, ge=1)
    """The fewest pixels of an image, 64 tokens; a smaller one is scaled up to this."""
    image_max_pixels: int = Field(default=1_048_576, ge=1)
    """The most pixels of an image, 1,024 tokens; a larger one is scaled down to this."""
    fps: float = Field(default=2.0, gt=0)
    """The frames taken from a second of video. More show faster movement and take more tokens."""
    min_frames: int = Field(default=4, ge=2)
    """The fewest frames of one video; a shorter one is sampled more densely."""
    max_frames: int = Field(default=128, ge=2)
    """The most frames of one video; a longer one is sampled more thinly."""
    video_min_pixels: int = Field(default=4096, ge=1)
    """The fewest pixels of a frame; a smaller one is scaled up to this."""
    video_max_pixels: int = Field(default=262_144, ge=1)
    """The most pixels of a frame, 256 tokens for a pair of frames; a larger one is scaled down to this."""

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


def engine_rank(rank: int) -> int:
    """The smallest `max_lora_rank` of the engine that serves `rank`."""
    for size in ENGINE_RANKS:
        if size >= rank:
            return size
    raise ValueError(f"the engine serves no adapter above rank {ENGINE_RANKS[-1]}, this one has {rank}")
