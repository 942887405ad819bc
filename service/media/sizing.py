"""Which frames of a video are taken, and to which size pixels are brought: pure arithmetic.

Both rules are those of transformers' Qwen3-VL processors. What comes out needs no second round there: processors run
on it with `do_resize=False` and `do_sample_frames=False`. Bounds are per image and per frame, never per clip: a
longer clip has more frames, not coarser ones.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.media.limits import Limits, MediaError


class Sampling(BaseModel):
    """Which frames of a video are taken (see `sample`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fps: float = Field(default=2.0, gt=0)
    min_frames: int = Field(default=4, ge=2)
    max_frames: int = Field(default=128, ge=2)


class Sizing(BaseModel):
    """To which size an image or a frame is brought (see `fitting_size`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_pixels: int = Field(gt=0)
    max_pixels: int = Field(gt=0)
    """Both bounds are for an image or for a single frame."""
    factor: int = Field(default=32, gt=0)
    """Patch size times merge size of the vision tower: sides are multiples of it."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """How media become pixels."""

    images: Sizing
    videos: Sizing
    """For each frame by itself."""
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)


def sample(total: int, fps: float, sampling: Sampling) -> tuple[int, ...]:
    """The indices taken of `total` frames at `fps`: evenly spread from the first to the last, both included.

    The rule is `Qwen3VLVideoProcessor.sample_frames` with two differences, which stand at their lines.
    """
    # A clip that is not faster than the wanted rate is taken whole; there, rounding may lose a frame.
    count = total if fps <= sampling.fps else int(total / fps * sampling.fps)
    # A single frame is taken twice; there, it is refused later, because the model sees frames in pairs.
    count = max(2, min(max(count, sampling.min_frames), sampling.max_frames, total))
    return tuple(int(index) for index in np.linspace(0, total - 1, count).round())


def fitting_size(height: int, width: int, sizing: Sizing) -> tuple[int, int]:
    """The (height, width) nearest in shape whose area lies between the bounds."""
    if max(height, width) / min(height, width) > 200:  # the processor's own limit
        raise MediaError(f"{width} x {height} pixels: one side is over 200 times the other; crop it", "unsupported")
    factor = sizing.factor
    rounded = round(height / factor) * factor, round(width / factor) * factor
    # Areas go with the square of the sides. Rounding away from the bound keeps the area on its right side; a narrow
    # image still has one factor across.
    if math.prod(rounded) > sizing.max_pixels:
        shrink = math.sqrt(height * width / sizing.max_pixels)
        return _floor(height / shrink, factor), _floor(width / shrink, factor)
    if math.prod(rounded) < sizing.min_pixels:
        grow = math.sqrt(sizing.min_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def _floor(side: float, factor: int) -> int:
    return max(factor, math.floor(side / factor) * factor)
