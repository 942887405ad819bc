"""How many tokens a prompt takes in the model, from its text and its media's headers: nothing is decoded.

Of text and images exactly so many, of a video at most: how many frames it has, only its packets tell. What is longer
than the recipe allows is dropped before training, and never cut.

Left out: generated questions, whose length is known.
"""

from collections.abc import Callable, Sequence
from typing import Any

from adapters.errors import UserError
from service.media import Pixels, Sizing, fitting_size
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Message, Prompts
from trainer.data.rows import Clip, Measured

Count = Callable[[Sequence[Message]], int]
TOO_LONG = "too long"
_STAMP = "<9999.9 seconds>"  # stands before each pair of frames


def within(prompts: Prompts, capability: str, tokenizer: Any, pixels: Pixels, most: int) -> Prompts:
    """Those of at most so many tokens."""
    if not isinstance(prompts, PromptSet):
        return prompts
    stamp = len(tokenizer.encode(_STAMP, add_special_tokens=False))

    def why_not(found: Measured) -> str | None:
        chat = tokenizer.apply_chat_template(found.messages, add_generation_prompt=True, return_dict=False)
        media = sum(image_tokens(size, pixels.images) - 1 for size in found.images)
        media += sum(most_video_tokens(clip, pixels, stamp) - 1 for clip in found.videos)
        return TOO_LONG if len(chat) + media > most else None

    kept = prompts.keep(why_not)
    if not len(kept):
        raise UserError(
            f"capabilities.{capability}.data: every prompt has more than {most} tokens; raise rollout.max_prompt_tokens"
        )
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
