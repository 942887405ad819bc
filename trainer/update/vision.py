"""What the frozen vision tower makes of a prompt's media, and where a prompt's tokens stand: once for each prompt.

The tower has no adapter, so its features are computed without gradient and serve every completion, term and update of
a step. Pixels come from the service's decoder with the service's settings, so engine and trainer see the same. The
expanded ids are the engine's; that they hold as many pads as the features have rows is checked here.

Axes: A axes of a position (time, height and width; one without vision), P tokens of a prompt, M tokens of media among
them, D hidden size, L layers that take deep features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.errors import UserError
from service.media import Pixels, Sizing, decode_image, decode_video
from trainer.parts import Rollout


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A prompt as the language model takes it."""

    positions_AP: Tensor
    is_media_P: Tensor
    features_MD: Tensor | None
    deep_LMD: Tensor | None
    """Added to the hidden states after the first layers."""


class Vision:
    """Sees prompts and remembers them until `forget`."""

    def __init__(
        self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, pixels: Pixels | None = None
    ) -> None:
        """Without `pixels` the bounds are those of the base's own processor, as they are the service's."""
        self._model: Any = model.model
        self._processor: Any = processor
        self._pads = {"image": int(model.config.image_token_id), "video": int(model.config.video_token_id)}
        size = self._processor.image_processor.size
        base_sizing = Sizing(min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"])
        self._pixels = pixels or Pixels(images=base_sizing, videos=base_sizing)
        self._seen: dict[bytes, Seen] = {}

    def __call__(self, rollout: Rollout) -> Seen:
        # By content: the completions of a prompt come in several packs and updates, and each pack has its own objects.
        key = hashlib.sha256(rollout.ids_P.tobytes())
        for data in (*rollout.prompt.images, *rollout.prompt.videos):
            key.update(hashlib.sha256(data).digest())
        if key.digest() not in self._seen:
            self._seen[key.digest()] = self._see(rollout)
        return self._seen[key.digest()]

    def forget(self) -> None:
        self._seen.clear()

    @torch.no_grad()
    def _see(self, rollout: Rollout) -> Seen:
        device = self._model.device
        ids_P = torch.from_numpy(rollout.ids_P)
        kinds_P = (ids_P == self._pads["image"]).int() + 2 * (ids_P == self._pads["video"]).int()
        media = {"image": self._images(rollout.prompt.images), "video": self._videos(rollout.prompt.videos)}
        grids = {f"{kind}_grid_thw": pixels[1] for kind, pixels in media.items() if pixels is not None}
        features = {kind: self._features(*pixels) for kind, pixels in media.items() if pixels is not None}
        for kind, number in (("image", 1), ("video", 2)):
            pads, rows = int((kinds_P == number).sum()), len(features[kind][0]) if kind in features else 0
            if pads != rows:
                raise UserError(
                    f"the engine gave a prompt {pads} {kind} tokens, the trainer's processor makes {rows}; service and "
                    "worker must have the same base folder and media settings"
                )
        positions_31P, _ = self._model.get_rope_index(ids_P[None], kinds_P[None], **grids)
        is_media_P = (kinds_P > 0).to(device)
        if not features:
            return Seen(positions_31P[:, 0].to(device), is_media_P, None, None)
        kinds_M = kinds_P[kinds_P > 0].to(device)
        num_deep = len(self._model.config.vision_config.deepstack_visual_indexes)
        rows_MD = [_in_order(kinds_M, features, layer) for layer in range(1 + num_deep)]
        return Seen(positions_31P[:, 0].to(device), is_media_P, rows_MD[0], torch.stack(rows_MD[1:]))

    def _features(self, pixels: Tensor, grid: Tensor) -> list[Tensor]:
        """[rows, D] for the input, and for each layer that takes deep features."""
        output = self._model.get_image_features(pixels.to(self._model.device), grid.to(self._model.device))
        return [torch.cat(output.pooler_output), *(torch.cat(rows) for rows in output.deepstack_features)]

    def _images(self, images: Sequence[bytes]) -> tuple[Tensor, Tensor] | None:
        if not images:
            return None
        decoded = [decode_image(data, self._pixels.limits, self._pixels.images) for data in images]
        processed = self._processor.image_processor(decoded, do_resize=False, return_tensors="pt")  # resized already
        return processed["pixel_values"], processed["image_grid_thw"]

    def _videos(self, videos: Sequence[bytes]) -> tuple[Tensor, Tensor] | None:
        if not videos:
            return None
        pixels = self._pixels
        decoded = [decode_video(data, pixels.limits, pixels.sampling, pixels.videos) for data in videos]
        processed = self._processor.video_processor(
            [video.frames_THWC for video in decoded],
            video_metadata=[video.metadata() for video in decoded],
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        return processed["pixel_values_videos"], processed["video_grid_thw"]


class Blind:
    """Prompts of a base without vision: their tokens stand one after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, rollout: Rollout) -> Seen:
        has_media = bool(rollout.prompt.images or rollout.prompt.videos)
        assert not has_media, "refused before a run begins"
        positions_1P = torch.arange(len(rollout.ids_P), device=self._device)[None]
        return Seen(positions_1P, torch.zeros_like(positions_1P[0], dtype=torch.bool), None, None)

    def forget(self) -> None:
        """There is nothing to remember."""


def _in_order(kinds_M: Tensor, features: dict[str, list[Tensor]], layer: int) -> Tensor:
    """Rows of images and of videos, as their pads stand in the prompt."""
    example = next(iter(features.values()))[layer]
    rows_MD = example.new_empty(len(kinds_M), example.shape[1])
    for kind, number in (("image", 1), ("video", 2)):
        if kind in features:
            rows_MD[kinds_M == number] = features[kind][layer]
    return rows_MD
