"""Videos as encoders write them and as attackers do: which frames are taken, their times, and what is refused."""

import io
import struct
from contextlib import suppress
from fractions import Fraction
from typing import Any, cast

import av
import av.logging
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from service.media import Limits, MediaError, Sampling, Sizing, check_video, decode_video, encode_video

LIMITS = Limits()
EVERY = Sampling(fps=240.0, max_frames=768)
CODECS = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libvpx-vp9", "webm"),
    ("libvpx", "webm"),
    ("mpeg4", "mp4"),
    ("ffv1", "matroska"),
]


def shades(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames of one grey each, 8 levels apart: the level of a decoded frame is 8 times its number."""
    levels = (np.arange(count) * 8).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)))


def written(frames_THWC, codec="libx264", form="mp4", *, rate=24, times=None, pixels="yuv420p", **options) -> bytes:
    """The frames as a file; `times` in milliseconds make the rate variable."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = pixels
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, pixels_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def with_duration(webm: bytes, milliseconds: float) -> bytes:
    """The same file with another duration in its header."""
    start = webm.index(b"\x44\x89\x88") + 3  # the element Duration, a double
    return webm[:start] + struct.pack(">d", milliseconds) + webm[start + 8 :]


def levels(video) -> list[int]:
    """The numbers of the frames of `shades` that were decoded."""
    return [round(float(frame.mean()) / 8) for frame in video.frames_THWC]


# ---- what comes out ----


@settings(max_examples=25)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 33), st.integers(1, 33), st.just(3))),
    st.sampled_from([0.5, 1.0, 2.0, 12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 60.0, 240.0]),
)
def test_encoded_frames_come_back_exactly_at_their_rate(frames_THWC, fps):
    data = encode_video(frames_THWC, fps)
    assert data == encode_video(frames_THWC, fps)
    video = decode_video(data, LIMITS, Sampling(fps=fps))
    assert video.fps == pytest.approx(fps, abs=0)
    if len(frames_THWC) > 1:
        assert np.array_equal(video.frames_THWC, frames_THWC)
    else:
        assert np.array_equal(video.frames_THWC, np.concatenate([frames_THWC, frames_THWC]))


@pytest.mark.parametrize(("codec", "form"), CODECS)
def test_every_codec_gives_the_frames_asked_for(codec, form):
    pixels = "bgr0" if codec == "ffv1" else "yuv420p"
    video = decode_video(written(shades(30), codec, form, pixels=pixels), LIMITS, Sampling(fps=4.0))
    assert (video.total, video.fps, video.indices) == (30, 24.0, (0, 7, 14, 22, 29))
    assert levels(video) == [0, 7, 14, 22, 29]


def test_more_frames_than_allowed_are_spread_over_the_clip():
    video = decode_video(written(shades(30)), LIMITS, Sampling(fps=24.0, max_frames=3))
    assert levels(video) == list(video.indices) == [0, 14, 29]


def test_of_a_variable_rate_the_frame_on_screen_is_taken():
    times = [0, 100, 200, 1000, 1100, 2000]  # on a clock of 2.5 frames a second: 0, 400, 800, 1200, 1600, 2000 ms
    video = decode_video(written(shades(6), "libvpx", "webm", times=times), LIMITS, EVERY)
    assert (video.total, video.fps) == (6, 2.5)
    assert levels(video) == [0, 2, 2, 4, 4, 5]


def test_decoding_twice_gives_the_same_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8)
    data = written(noise)
    once, again = (decode_video(data, LIMITS, EVERY).frames_THWC for _ in range(2))
    assert np.array_equal(once, again)


def test_grey_stays_grey_and_is_not_darkened():
    pixels = decode_video(written(shades(16), "ffv1", "matroska"), LIMITS, EVERY).frames_THWC
    assert np.abs(pixels.astype(int) - shades(16)).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (2, 200)])
def test_odd_sizes_are_kept(height, width):
    data = written(shades(3, height, width), "ffv1", "matroska", pixels="bgr0")
    assert np.array_equal(decode_video(data, LIMITS, EVERY).frames_THWC, shades(3, height, width))


def test_frames_are_brought_to_the_size_asked_for():
    video = decode_video(written(shades(4)), LIMITS, EVERY, Sizing(min_pixels=32 * 32, max_pixels=40 * 60))
    assert video.frames_THWC.shape == (4, 32, 32, 3)
    assert levels(video) == [0, 1, 2, 3]


def test_a_telephone_video_is_turned_upright():
    quarter_turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    frames_THWC = shades(2, 64, 96)
    frames_THWC[:, :, :48] = 255
    head, track = written(frames_THWC).rsplit(b"tkhd", 1)
    turned = head + b"tkhd" + track.replace(upright, quarter_turn, 1)
    pixels = decode_video(turned, LIMITS, EVERY).frames_THWC
    assert pixels.shape == (2, 96, 64, 3)  # a quarter turn clockwise: what was left is on top
    assert pixels[0, :40].min() > 240
    assert pixels[0, 56:].max() < 15


def test_times_are_those_that_transformers_computes():
    video = decode_video(written(shades(25)), LIMITS, Sampling(fps=5.0))
    metadata = VideoMetadata(**video.metadata())
    assert metadata.timestamps == [index / 24 for index in video.indices]
    assert metadata.frames_indices is not None
    assert metadata.fps is not None
    pairs = Qwen3VLProcessor._calculate_timestamps(cast(Any, None), metadata.frames_indices, metadata.fps, 2)
    assert pairs == [(0 + 6 / 24) / 2, (12 / 24 + 18 / 24) / 2, 24 / 24]
    assert len(video.metadata()["frames_indices"]) == 5  # transformers padded its own copy


@pytest.mark.parametrize("count", [1, 2, 5])
def test_transformers_takes_the_frames_and_their_metadata_as_they_are(count):
    video = decode_video(encode_video(shades(count), 2.0), LIMITS, Sampling())
    processor = Qwen3VLVideoProcessor(do_resize=False, do_sample_frames=False, cap_pixels_per_frame=False)
    inputs = processor(
        videos=[video.frames_THWC], video_metadata=[VideoMetadata(**video.metadata())], return_tensors="pt"
    )
    assert inputs["video_grid_thw"].tolist() == [[max(1, (count + 1) // 2), 4, 6]]


# ---- what is refused ----


def audio_only() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def without_frames() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "bgr0"
        container.start_encoding()
    return file.getvalue()


def live() -> bytes:
    """A recording whose header knows no duration."""
    return written(shades(30, 16, 16), "libvpx", "webm", live="1")


def of_two_sizes() -> bytes:
    """A stream whose frames grow on the way, as a call does when the connection gets better."""
    small, large = (written(shades(3, side, side), "libvpx", "webm") for side in (32, 64))
    with av.open(io.BytesIO(small), "r") as first, av.open(io.BytesIO(large), "r") as second:
        file = io.BytesIO()
        with av.open(file, "w", format="webm") as container:
            stream = container.add_stream_from_template(first.streams.video[0])
            for offset, source in ((0, first), (3000, second)):
                for packet in source.demux(video=0):
                    if packet.size:
                        assert packet.pts is not None
                        assert packet.dts is not None
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + offset, packet.dts + offset
                        container.mux(packet)
        return file.getvalue()


def motion_jpeg() -> bytes:
    return written(shades(3), "mjpeg", "matroska", pixels="yuvj420p")


TEN_HOURS = 36_000_000.0
REFUSED = [
    (lambda: b"", "the video is empty", "damaged"),
    (lambda: b"a text named .mp4", "not an MP4, MOV, Matroska or WebM video: convert it", "unsupported"),
    (audio_only, "the file holds no video", "unsupported"),
    (without_frames, "the video's header is damaged", "damaged"),
    (
        lambda: written(shades(3), "mjpeg", "matroska", pixels="yuvj420p"),
        "the video's codec is not h264",
        "unsupported",
    ),
    (lambda: with_duration(written(shades(3), "libvpx", "webm"), TEN_HOURS), "the video lasts 36000 s", "too-large"),
    (lambda: written(shades(2, 16, 16), "libvpx", "webm", times=[0, 700_000]), "the video lasts 70", "too-large"),
    (of_two_sizes, "the video's frame size changes on the way", "unsupported"),
    (lambda: written(shades(30))[:-9], "the video is cut off: its end is missing", "damaged"),
    (lambda: written(shades(30))[:1000], "the video is cut off", "damaged"),
    (lambda: written(shades(30), "libvpx", "webm")[:-9], "the video is cut off", "damaged"),
    (lambda: b"\x1a\x45\xdf\xa3" + bytes(100), "the video's header is damaged", "damaged"),
    (lambda: b"\0\0\0\x10ftypisom\0\0\0\0" + bytes(100), "the video's header is damaged", "damaged"),
]


@pytest.mark.parametrize(("make", "message", "reason"), REFUSED)
def test_a_hostile_video_is_refused_in_our_own_words(make, message, reason):
    with pytest.raises(MediaError) as caught:
        decode_video(make(), LIMITS, EVERY)
    assert str(caught.value).startswith(message)
    assert caught.value.reason == reason
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(video_bytes=100), "the video has .* bytes, 100 are allowed"),
        (Limits(video_pixels=1000), "the video has 96 x 64 pixels, 1000 are allowed"),
        (Limits(video_seconds=1.0), "the video lasts 1 s, 1 s are allowed: cut it"),
        (Limits(video_frames=29), "the video has more than 29 frames: cut it"),
        (Limits(clip_pixels=1000), "30 frames of 96 x 64 pixels are more than the 1000 pixels allowed"),
        (Limits(video_codecs=("av1", "vp9")), "the video's codec is not av1 or vp9: convert it"),
    ],
)
def test_each_limit_refuses(limits, message):
    with pytest.raises(MediaError, match=message):
        decode_video(written(shades(30)), limits, EVERY)


def test_ten_hours_are_refused_by_the_header_without_looking_at_a_frame():
    whole = written(shades(30), "libvpx", "webm")
    first_frame = whole.index(b"\x1f\x43\xb6\x75") + 40
    data = with_duration(whole[:first_frame] + bytes(len(whole) - first_frame), TEN_HOURS)
    with pytest.raises(MediaError, match="the video lasts 36000 s, 600 s are allowed: cut it"):
        check_video(io.BytesIO(data), LIMITS)


def test_a_recording_without_duration_is_cut_by_its_packets():
    assert decode_video(live(), LIMITS, EVERY).total == 30
    with pytest.raises(MediaError, match="the video lasts 1 s"):
        decode_video(live(), Limits(video_seconds=1.0), EVERY)
    with pytest.raises(MediaError, match="more than 10 frames"):
        decode_video(live(), Limits(video_frames=10), EVERY)


@pytest.fixture
def ffmpeg_log():
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    with av.logging.Capture(local=False) as log:
        yield log
    av.logging.set_level(level)


def test_a_decoder_outside_the_list_is_never_opened(ffmpeg_log):
    with pytest.raises(MediaError):
        decode_video(motion_jpeg(), LIMITS, EVERY)
    assert any("not on whitelist" in message for _, _, message in ffmpeg_log)


def test_sound_beside_the_video_is_ignored():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video, sound = container.add_stream("libx264", rate=24), container.add_stream("aac", rate=16_000)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        for number, pixels_HWC in enumerate(shades(5)):
            frame = av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate, samples.pts = 16_000, 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    assert levels(decode_video(file.getvalue(), LIMITS, EVERY)) == [0, 1, 2, 3, 4]


@settings(max_examples=60)
@given(st.sampled_from(CODECS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_damage_anywhere_is_refused_or_decoded_but_never_another_error(files, codec, bytes_changed):
    data = bytearray(files[codec])
    for share, value in bytes_changed:
        data[int(share * (len(data) - 1))] = value
    with suppress(MediaError):
        video = decode_video(bytes(data), LIMITS, EVERY)
        assert len(video.frames_THWC) == len(video.indices)


@pytest.fixture(scope="module")
def files() -> dict[tuple[str, str], bytes]:
    return {
        (codec, form): written(shades(12, 32, 48), codec, form, pixels="bgr0" if codec == "ffv1" else "yuv420p")
        for codec, form in CODECS
    }
