"""A prompt's tokens beside those of transformers' processor on the same media."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, Qwen3VLProcessor

from adapters.base import locate
from adapters.errors import UserError
from service.media import decode_image, decode_video, encode_image, encode_video
from trainer.data.datasets import load
from trainer.data.lengths import pixels_of, within
from trainer.recipe import MediaConfig

BASE = locate("miniature")
MEDIA = MediaConfig(
    image_min_pixels=1024, image_max_pixels=16384, video_min_pixels=1024, video_max_pixels=16384, max_frames=8
)
PIXELS = pixels_of(MEDIA)
COLUMNS = {"images": "image", "videos": "video"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def processor():
    return Qwen3VLProcessor.from_pretrained(BASE)


@pytest.fixture
def prompts(tmp_path):
    rng = np.random.default_rng(0)
    for height, width in ((40, 200), (300, 500)):
        (tmp_path / f"{height}.png").write_bytes(encode_image(rng.integers(0, 255, (height, width, 3), np.uint8)))
    for frames in (2, 9, 40):
        clip = rng.integers(0, 255, (frames, 48, 100, 3), np.uint8)
        (tmp_path / f"{frames}.mkv").write_bytes(encode_video(clip, 4.0))
    media = [{}, *({"image": f"{height}.png"} for height in (40, 300)), *({"video": f"{n}.mkv"} for n in (2, 9, 40))]
    media.append({"image": ["40.png", "300.png"], "video": "9.mkv"})
    rows = [{"prompt": f"{number} of them?", "answer": "1", "image": None, "video": None} | cells
            for number, cells in enumerate(media)]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(str(path), capability="mixed", columns=COLUMNS)


def true_length(prompt, processor) -> int:
    images = [decode_image(data, PIXELS.limits, PIXELS.images) for data in prompt.images]
    videos = [decode_video(data, PIXELS.limits, PIXELS.sampling, PIXELS.videos) for data in prompt.videos]
    text = processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
    inputs = processor(
        text=[text],
        images=images or None,
        videos=[video.frames_THWC for video in videos] or None,
        images_kwargs={"do_resize": False},
        videos_kwargs={
            "do_resize": False,
            "do_sample_frames": False,
            "video_metadata": [video.metadata() for video in videos] or None,
        },
    )
    return len(inputs["input_ids"][0])


def counted_length(prompts, index, tokenizer) -> int:
    """The smallest limit that keeps a prompt."""
    low, high = 1, 2000
    while low < high:
        most = (low + high) // 2
        try:
            fits = prompts[index].id in {prompt.id for prompt in within(prompts, "mixed", tokenizer, MEDIA, most)}
        except UserError:
            fits = False
        low, high = (low, most) if fits else (most + 1, high)
    return low


def test_text_and_images_are_counted_exactly_and_videos_never_too_low(prompts, tokenizer, processor) -> None:
    for index, prompt in enumerate(prompts):
        counted, true = counted_length(prompts, index, tokenizer), true_length(prompt, processor)
        if prompt.videos:
            assert true <= counted <= 1.6 * true + 20
        else:
            assert counted == true


def test_what_is_too_long_is_dropped_and_counted(prompts, tokenizer) -> None:
    short = within(prompts, "mixed", tokenizer, MEDIA, counted_length(prompts, 1, tokenizer))
    assert [prompt.id for prompt in short] == [prompts[0].id, prompts[1].id]
    ((why, count),) = short.dropped.items()
    assert (why.startswith("more than rollout.max_prompt_tokens = "), count) == (True, 5)
    with pytest.raises(
        UserError, match=r"no prompt is left, most have more than rollout\.max_prompt_tokens = 3 tokens"
    ):
        within(prompts, "mixed", tokenizer, MEDIA, 3)


def test_a_prompt_has_no_more_media_than_the_engine_takes(prompts, tokenizer) -> None:
    short = within(prompts, "mixed", tokenizer, MEDIA.model_copy(update={"max_images": 1, "max_videos": 0}), 2000)
    assert [prompt.id for prompt in short] == [prompts[index].id for index in (0, 1, 2)]
    assert short.dropped == {"more than media.max_images = 1 images": 1, "more than media.max_videos = 0 videos": 3}
