"""How many tokens a prompt takes in the model, from its text and its media's headers: nothing is decoded.

Of text and images exactly so many, of a video at most: how many frames it has, only its packets tell. What is longer
than the recipe allows is dropped before training, and never cut.

Left out: generated questions, whose length is known.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from service.media import Pixels, Sampling, Sizing, fitting_size
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.data.rows import Clip, Measured
from trainer.parts import ChatMessage
from trainer.recipe import MediaConfig, Recipe

Count = Callable[[Sequence[ChatMessage]], int]
_STAMP = "<9999.9 seconds>"  # stands before each pair of frames

log = logging.getLogger(__name__)


def fit(recipe: Recipe, base: Path) -> Callable[[str, Prompts], Prompts]:
    """Drops the prompts of a capability that are too long for the recipe, and says how many."""
    most = recipe.rollout.max_prompt_tokens

    def fitting(capability: str, prompts: Prompts) -> Prompts:
        if not isinstance(prompts, PromptSet):
            return prompts
        from transformers import AutoTokenizer

        kept = within(prompts, capability, AutoTokenizer.from_pretrained(base), recipe.media, most)
        for reason, count in sorted((kept.dropped - prompts.dropped).items()):
            log.warning("%s: %d of %d prompts are left out: %s", capability, count, len(prompts), reason)
        return kept

    return fitting


def pixels_of(media: MediaConfig) -> Pixels:
    return Pixels(
        images=Sizing(min_pixels=media.image_min_pixels, max_pixels=media.image_max_pixels),
        videos=Sizing(min_pixels=media.video_min_pixels, max_pixels=media.video_max_pixels),
        sampling=Sampling(fps=media.fps, min_frames=media.min_frames, max_frames=media.max_frames),
    )


def within(prompts: PromptSet, capability: str, tokenizer: Any, media_limits: MediaConfig, most: int) -> PromptSet:
    """Those of at most so many tokens, images and videos."""
    stamp, pixels = len(tokenizer.encode(_STAMP, add_special_tokens=False)), pixels_of(media_limits)

    def why_not(found: Measured) -> str | None:
        if len(found.images) > media_limits.max_images:
            return f"more than media.max_images = {media_limits.max_images} images"
        if len(found.videos) > media_limits.max_videos:
            return f"more than media.max_videos = {media_limits.max_videos} videos"
        chat = tokenizer.apply_chat_template(found.messages, add_generation_prompt=True, return_dict=False)
        media = sum(image_tokens(size, pixels.images) - 1 for size in found.images)
        media += sum(most_video_tokens(clip, pixels, stamp) - 1 for clip in found.videos)
        return f"more than rollout.max_prompt_tokens = {most} tokens" if len(chat) + media > most else None

    kept = prompts.keep(why_not)
    if not len(kept):
        why = kept.dropped.most_common(1)[0][0]
        raise UserError(f"capabilities.{capability}.data: no prompt is left, most have {why}; raise that")
    return kept


def image_tokens(size: tuple[int, int], sizing: Sizing) -> int:
    height, width = fitting_size(*size, sizing)
    return (height // sizing.factor) * (width // sizing.factor)


def most_video_tokens(clip: Clip, pixels: Pixels, stamp: int) -> int:
    """A pair of frames has the tokens of one, a mark on either side, and its time."""
    sampling = pixels.sampling
    frames = sampling.max_frames
    if clip.seconds is not None:
        frames = min(frames, max(sampling.min_frames, int(clip.seconds * sampling.fps) + 1))
    pairs = (frames + 1) // 2
    return pairs * (image_tokens(clip.size, pixels.videos) + 2 + stamp)
