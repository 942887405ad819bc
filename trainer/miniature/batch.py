"""Batches of the miniature's questions for transformers, fast enough to train the base in minutes.

All prompts of one capability and level have the same tokens but for the question, so the processor runs once for
each of them and the rest is splicing; pixels are cut into patches for the whole batch at once. Both are equal to what
the processor makes of each question alone (the tests compare them). Questions in words differ in length: the shorter
ones are padded on the left, so that all of them end together.

Axes: B questions, T tokens of the prompt, C tokens of the completion, F frames, N patches, D values of a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.miniature.drawing import FPS
from trainer.miniature.question import Frames, Media, Question


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts that end together, as the model takes them."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    """Which tokens are no padding; None: all of them."""
    positions_3BT: Tensor
    pixels: dict[str, Tensor]
    """`pixel_values` and its grid under the names of the model's arguments; empty for text."""


class Prompter:
    """Turns questions of one capability and level into a `PromptBatch`."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> None:
        config: Any = model.config
        self._media_tokens = (config.image_token_id, config.video_token_id)
        self._rope: Any = model.model.get_rope_index
        self._processor = processor
        self._around = cache(self._tokens_around)

    def __call__(self, questions: Sequence[Question]) -> PromptBatch:
        first = questions[0]
        media, frames = first.capability.media, [question.scene.render() for question in questions]
        # The shape belongs to the key: it decides how many media tokens stand before the question.
        head_T, tail_T = self._around(media, frames[0].shape)
        bodies: list[list[int]] = self._processor.tokenizer([question.text for question in questions])["input_ids"]
        longest = max(map(len, bodies))
        shorter = [longest - len(body) for body in bodies]
        pad = self._processor.tokenizer.pad_token_id
        ids_BT = torch.tensor(
            [[pad] * count + head_T + body + tail_T for count, body in zip(shorter, bodies, strict=True)]
        )
        pixels = patches(media, frames)
        # Positions follow from where media stand and how large they are, which is the same in every row: a shorter one
        # has the first of the longest one's, after its padding.
        grid = {name: values[:1] for name, values in pixels.items() if name.endswith("grid_thw")}
        image_token, video_token = self._media_tokens
        ids_1T = ids_BT[shorter.index(0)][None]
        kinds_1T = (ids_1T == image_token).int() + 2 * (ids_1T == video_token).int()  # 0 text, 1 image, 2 video
        positions_31T, _ = self._rope(ids_1T, kinds_1T, **grid)
        if not any(shorter):
            return PromptBatch(ids_BT, None, positions_31T.expand(3, len(questions), -1), pixels)
        at_BT = torch.arange(ids_BT.shape[1]) - torch.tensor(shorter)[:, None]
        return PromptBatch(ids_BT, (at_BT >= 0).long(), positions_31T[:, 0, at_BT.clamp(min=0)], pixels)

    def _tokens_around(self, media: Media, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The tokens before and after the question, from the processor's own output."""
        mark = "?"
        inputs = self._processor(
            text=[chat(self._processor, media, mark)], **media_arguments(media, np.zeros(shape, np.uint8))
        )
        ids: list[int] = inputs["input_ids"][0]
        (mark_id,) = self._processor.tokenizer(mark)["input_ids"]
        position = len(ids) - 1 - ids[::-1].index(mark_id)  # from the end: the question is the last text
        return ids[:position], ids[position + 1 :]


def chat(processor: Qwen3VLProcessor, media: Media, text: str) -> str:
    """A question in the chat marks, its media first."""
    content = [{"type": "text", "text": text}]
    if media != "none":
        content.insert(0, {"type": media})
    messages: list[Any] = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def media_arguments(media: Media, frames: Frames) -> dict[str, Any]:
    """Frames as the processor takes them."""
    if media == "image":
        return {"images": [frames[0]]}
    if media == "video":
        metadata = {"fps": FPS, "frames_indices": list(range(len(frames))), "total_num_frames": len(frames)}
        return {"videos": [frames], "video_metadata": [metadata]}
    return {}


def patches(media: Media, frames: Sequence[Frames]) -> dict[str, Tensor]:
    """Pixels in the order of Qwen's processor: 2 x 2 patches of one visual token after another."""
    if media == "none":
        return {}
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1  # B F C H W
    if media == "image":
        pixels = pixels.expand(-1, 2, -1, -1, -1)  # a patch is two frames deep: an image is shown twice
    B, F, C, H, W = pixels.shape
    times, high, wide = F // 2, H // 16, W // 16
    # From B, time, pair, C, (row of tokens, row in it, y), (column of tokens, column in it, x)
    # to B, time, row of tokens, column of tokens, row in it, column in it, C, pair, y, x.
    cut = pixels.reshape(B, times, 2, C, high // 2, 2, 16, wide // 2, 2, 16).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    values_ND = cut.reshape(B * times * high * wide, C * 2 * 16 * 16)
    grid = torch.tensor([[times, high, wide]]).expand(B, -1)
    suffix = "_videos" if media == "video" else ""
    return {f"pixel_values{suffix}": values_ND, f"{media}_grid_thw": grid}
