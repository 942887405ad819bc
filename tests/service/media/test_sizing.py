"""Sizes and frame choice equal those of transformers' own processors."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as resize_image
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_clip
from transformers.video_utils import VideoMetadata

from service.media import MediaError, Sampling, Sizing, fitting_size, sample

sides = st.integers(1, 5000)
bounds = st.tuples(st.integers(1, 2**21), st.integers(1, 2**21)).map(sorted)
factors = st.sampled_from([14, 16, 28, 32])


def refuses(call) -> bool:
    try:
        call()
    except ValueError:
        return True
    return False


@given(sides, sides, bounds, factors)
def test_an_image_gets_the_size_that_transformers_gives_it(height, width, bounds, factor):
    low, high = bounds
    sizing = Sizing(min_pixels=low, max_pixels=high, factor=factor)
    if refuses(lambda: resize_image(height, width, factor, low, high)):
        assert refuses(lambda: fitting_size(height, width, sizing))
    else:
        assert fitting_size(height, width, sizing) == resize_image(height, width, factor, low, high)


@given(sides, sides, bounds, factors, st.integers(1, 64).map(lambda pairs: 2 * pairs))
def test_a_frame_gets_the_size_that_transformers_gives_it_in_a_clip(height, width, bounds, factor, frames):
    assume(min(height, width) >= factor and max(height, width) <= 200 * min(height, width))
    low, high = bounds
    expected = resize_clip(frames, height, width, 2, factor, frames * low, frames * high)
    assert fitting_size(height, width, Sizing(min_pixels=low, max_pixels=high, factor=factor)) == expected


def test_a_sliver_is_refused():
    with pytest.raises(MediaError, match="201 x 1 pixels: one side is over 200 times the other"):
        fitting_size(1, 201, Sizing(min_pixels=1, max_pixels=2**20))


@pytest.fixture(scope="module")
def processor():
    return Qwen3VLVideoProcessor(fps=2, min_frames=4, max_frames=128)


@given(
    total=st.integers(2, 40_000),
    fps=st.sampled_from([1.0, 5.0, 12.5, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]) | st.floats(0.5, 240),
    wanted=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    low=st.integers(2, 16),
    high=st.integers(2, 256),
)
def test_the_frames_that_transformers_would_sample_are_taken(processor, total, fps, wanted, low, high):
    assume(fps != wanted)  # at equal rates transformers may lose a frame to rounding
    processor.min_frames, processor.max_frames = low, high
    expected = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=fps), fps=wanted)
    assert sample(total, fps, Sampling(fps=wanted, min_frames=low, max_frames=high)) == tuple(expected)


@given(st.integers(2, 768), st.floats(0.1, 240))
def test_a_clip_at_the_rate_asked_for_is_taken_whole(total, fps):
    assert sample(total, fps, Sampling(fps=fps, max_frames=768)) == tuple(range(total))


def test_a_single_frame_is_taken_twice():
    assert sample(1, 30.0, Sampling()) == (0, 0)
