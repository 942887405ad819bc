"""Questions that are made up as prompts, media encoded: what a data set is to the rest of the system."""

import itertools
from typing import Literal

from service.media import encode_image, encode_video
from trainer.data.prompts import PromptList, make_prompt
from trainer.miniature.capabilities import capability
from trainer.miniature.drawing import FPS
from trainer.miniature.question import MiniatureCapability, Split, questions
from trainer.parts import Prompt
from trainer.realbase.questions import CAPABILITIES as REAL

Kind = Literal["miniature", "real"]
"""The base that the questions are for, which a recipe calls the type of its data."""


def generated(name: str, kind: Kind) -> MiniatureCapability:
    """A capability whose questions are made up."""
    return capability(name, "real", REAL) if kind == "real" else capability(name)


def prompts(
    name: str, *, label: str, split: Split, size: int, seed: int, level: int | None = None, kind: Kind = "miniature"
) -> PromptList:
    """`size` questions of the capability `name`; `label` is what the recipe calls it."""
    drawn: list[Prompt] = []
    for question in itertools.islice(questions(generated(name, kind), split, seed, level), size):
        media, frames = question.capability.media, question.scene.render()
        # Encoded, though they were just drawn: training sees what the service decodes, as with any data set.
        images = [encode_image(frames[0])] if media == "image" else []
        videos = [encode_video(frames, FPS)] if media == "video" else []
        drawn.append(make_prompt(label, question.text, question.answer, images, videos))
    return PromptList(drawn)
