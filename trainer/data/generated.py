"""The miniature's questions as prompts, media encoded: what a data set is to the rest of the system."""

import itertools

from service.media import encode_image, encode_video
from trainer.data.prompts import PromptList, make_prompt
from trainer.miniature.capabilities import capability
from trainer.miniature.drawing import FPS
from trainer.miniature.question import Split, questions
from trainer.parts import Prompt


def prompts(name: str, *, label: str, split: Split, size: int, seed: int, level: int | None = None) -> PromptList:
    """`size` questions of the capability `name`; `label` is what the recipe calls it."""
    drawn: list[Prompt] = []
    for question in itertools.islice(questions(capability(name), split, seed, level), size):
        media, frames = question.capability.media, question.scene.render()
        # Encoded, though they were just drawn: training sees what the service decodes, as with any data set.
        images = [encode_image(frames[0])] if media == "image" else []
        videos = [encode_video(frames, FPS)] if media == "video" else []
        drawn.append(make_prompt(label, question.text, question.answer, images, videos))
    return PromptList(drawn)
