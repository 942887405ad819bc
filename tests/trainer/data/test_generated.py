"""The miniature as a data set: media come back exactly as they were drawn."""

import itertools

import numpy as np
import pytest

from service.media import Limits, Sampling, decode_image, decode_video
from trainer.data.generated import prompts
from trainer.miniature.capabilities import CAPABILITIES, capability
from trainer.miniature.question import questions


@pytest.mark.parametrize("name", ["image", "shapes"])
def test_an_image_travels_exactly(name: str) -> None:
    (question,) = itertools.islice(questions(capability(name), "train", 3), 1)
    (prompt,) = prompts(name, label="looking", split="train", size=1, seed=3)
    assert (prompt.capability, prompt.answer) == ("looking", question.answer)
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["image", "text"]
    assert np.array_equal(np.asarray(decode_image(prompt.images[0], Limits())), question.scene.render()[0])


@pytest.mark.parametrize("name", ["video", "order"])
def test_a_video_travels_exactly_with_its_times(name: str) -> None:
    (question,) = itertools.islice(questions(capability(name), "train", 3), 1)
    (prompt,) = prompts(name, label="video", split="train", size=1, seed=3)
    video = decode_video(prompt.videos[0], Limits(), Sampling())
    assert np.array_equal(video.frames_THWC, question.scene.render())
    assert (video.fps, video.indices) == (2.0, tuple(range(12)))


@pytest.mark.parametrize("name", sorted(CAPABILITIES))
def test_a_seed_is_a_data_set(name: str) -> None:
    def fingerprint(seed: int) -> str:
        return prompts(name, label=name, split="test", size=12, seed=seed, level=2).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)
