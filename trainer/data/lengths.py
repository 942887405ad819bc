"""How many tokens a prompt takes in the model, from its text and its media's headers: nothing is decoded.

Text and images are counted exactly, a video at its most: how many frames it has, only its packets tell. What is
longer than the recipe allows is dropped before training, and never cut.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from service.chats import for_template
from service.media import Pixels, Sampling, Sizing, fitting_size
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.data.rows import PromptSizes, VideoHeader
from trainer.recipe import MediaConfig, Recipe

_STAMP = "<9999.9 seconds>"
"""The time that stands before each pair of frames, as long as it can get."""

log = logging.getLogger(__name__)


def fit(recipe: Recipe, base: Path) -> Callable[[str, Prompts], Prompts]:
    """A function that drops the prompts of a capability that are too long for the recipe, and says how many."""
    most = recipe.rollout.max_prompt_tokens

    def fitting(capability: str, prompts: Prompts) -> Prompts:
        if not isinstance(prompts, PromptSet):  # generated questions, whose length is known
            return prompts
        from transformers import AutoTokenizer  # a slow import that generated questions do without

        short = within(prompts, capability, AutoTokenizer.from_pretrained(base), recipe.media, most)
        for reason, count in sorted((short.dropped - prompts.dropped).items()):
            log.warning("%s: %d of %d prompts are left out: %s", capability, count, len(prompts), reason)
        return short

    return fitting


def pixels_of(media: MediaConfig) -> Pixels:
    """The recipe's limits as the decoder takes them."""
    return Pixels(
        images=Sizing(min_pixels=media.image_min_pixels, max_pixels=media.image_max_pixels),
        videos=Sizing(min_pixels=media.video_min_pixels, max_pixels=media.video_max_pixels),
        sampling=Sampling(fps=media.fps, min_frames=media.min_frames, max_frames=media.max_frames),
    )


def within(prompts: PromptSet, capability: str, tokenizer: Any, media_limits: MediaConfig, most: int) -> PromptSet:
    """The prompts of at most so many tokens, images and videos."""
    stamp, pixels = len(tokenizer.encode(_STAMP, add_special_tokens=False)), pixels_of(media_limits)

    def why_not(sizes: PromptSizes) -> str | None:
        if len(sizes.images) > media_limits.max_images:
            return f"more than media.max_images = {media_limits.max_images} images"
        if len(sizes.videos) > media_limits.max_videos:
            return f"more than media.max_videos = {media_limits.max_videos} videos"
        messages = for_template(sizes.messages)  # as the service does, or other tokens would be counted
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        # Less 1 each: the template has one mark for a medium already, which its tokens replace.
        media = sum(image_tokens(size, pixels.images) - 1 for size in sizes.images)
        media += sum(most_video_tokens(header, pixels, stamp) - 1 for header in sizes.videos)
        return f"more than rollout.max_prompt_tokens = {most} tokens" if len(chat) + media > most else None

    short = prompts.keep(why_not)
    if not len(short):
        reason = short.dropped.most_common(1)[0][0]
        raise UserError(f"capabilities.{capability}.data: no prompt is left, most have {reason}; raise that")
    return short


def image_tokens(size: tuple[int, int], sizing: Sizing) -> int:
    height, width = fitting_size(*size, sizing)
    return (height // sizing.factor) * (width // sizing.factor)


def most_video_tokens(header: VideoHeader, pixels: Pixels, stamp: int) -> int:
    """The most tokens that a video can take: those of an image for each pair of frames, with marks and a time."""
    sampling = pixels.sampling
    frames = sampling.max_frames
    if header.seconds is not None:
        frames = min(frames, max(sampling.min_frames, int(header.seconds * sampling.fps) + 1))
    pairs = (frames + 1) // 2  # the vision tower folds two frames into one step of time
    return pairs * (image_tokens(header.size, pixels.videos) + 2 + stamp)  # 2: the marks around it
