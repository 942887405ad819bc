"""Video: MP4, MOV, Matroska and WebM to upright RGB frames with their times, and frames to a lossless file."""

import io
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from service.media.images import resized
from service.media.limits import Demuxer, Limits, MediaError, check_bytes, check_pixels, damaged, demuxer, one_of
from service.media.sizing import Sampling, Sizing, fitting_size, sample

VideoPackets: TypeAlias = "list[Packet[VideoStream]]"

_DECODERS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,ffv1"  # FFmpeg's names of the decoders of `Limits.video_codecs`

_EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""Without these, colours depend on the processor's instruction set and come out a level too dark."""


@dataclass(frozen=True, slots=True)
class Video:
    """The frames taken, and their moments on the clock of the file: frame t was on screen at `indices[t] / fps` s."""

    frames_THWC: NDArray[np.uint8]
    indices: tuple[int, ...]
    total: int
    fps: float

    def metadata(self) -> dict[str, Any]:
        """The fields of transformers' `VideoMetadata`; vLLM takes the same with `do_sample_frames=False` added."""
        # Fresh on every call: transformers pads the list of indices in place.
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "width": self.frames_THWC.shape[2],
            "height": self.frames_THWC.shape[1],
            "duration": self.total / self.fps,
            "video_backend": "pyav",
            "frames_indices": list(self.indices),
        }


def check_video(file: BinaryIO, limits: Limits) -> tuple[int, int, float | None]:
    """Refuse by header: container, bytes, codec, frame size, duration, a file that ends too early. Gives the height,
    width and seconds that it states."""
    with _open_video(file, limits) as (container, stream):
        seconds = None if container.duration is None else container.duration / 1_000_000  # FFmpeg counts microseconds
        return stream.codec_context.height, stream.codec_context.width, seconds


def decode_video(data: bytes, limits: Limits, sampling: Sampling, sizing: Sizing | None = None) -> Video:
    """The frames that `sample` takes, upright RGB, resized (bicubic) when `sizing` is given.

    The clock is the file's own: one tick a frame, at the rate its header declares where every frame keeps to it, else
    at the mean rate of its frames. An index is then a moment, and the frame on screen at that moment is taken.
    """
    with _open_video(io.BytesIO(data), limits) as (container, stream):
        packets, times = _read_packets(container, stream, limits)
        fps, moments = _clock(times, stream.average_rate, _tick(stream))
        indices = sample(len(times), fps, sampling)
        frames_THWC = _draw_frames(stream, packets, [moments[index] for index in indices], limits, sizing)
    return Video(frames_THWC, indices, len(times), fps)


def encode_video(frames_THWC: NDArray[np.uint8], fps: float) -> bytes:
    """Frames as a lossless file (FFV1 in Matroska) that `decode_video` gives back exactly; same frames, same bytes."""
    assert frames_THWC.ndim == 4, frames_THWC.shape
    assert frames_THWC.shape[3] == 3, frames_THWC.shape
    assert len(frames_THWC) > 0
    assert frames_THWC.dtype == np.uint8, frames_THWC.dtype
    assert 0 < fps <= 240, fps  # Matroska counts milliseconds
    file, rate = io.BytesIO(), Fraction(fps).limit_denominator(1001)  # 1001 for rates such as 30000/1001
    with av.open(file, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        # Level 1 takes every frame size: later levels cut frames into slices, which a narrow one has no room for.
        stream = container.add_stream("ffv1", rate=rate, options={"level": "1", "flags": "+bitexact"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "bgr0"  # RGB: a codec's usual YUV loses a level here and there
        stream.thread_count = 1
        for number, frame_HWC in enumerate(frames_THWC):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))  # what the encoder still holds
    return file.getvalue()


# ---- the header ----


@contextmanager
def _open_video(file: BinaryIO, limits: Limits) -> Generator[tuple[InputContainer, VideoStream]]:
    format = demuxer(check_bytes("video", file, limits.video_bytes))
    if format is None:
        raise MediaError("not an MP4, MOV, Matroska or WebM video: convert it", "unsupported")
    if _ends_early(file, format):
        raise MediaError("the video is cut off: its end is missing")
    # Opening a container may decode a frame of every stream to learn about it: the same bounds hold there.
    options = {"codec_whitelist": _DECODERS, "max_pixels": str(limits.video_pixels), "max_streams": "16"}
    with damaged("the video's header is damaged: store it again"):
        container = av.open(file, "r", format=format, options=options, metadata_errors="replace")
    with container:
        # A cover picture is a video stream of one frame.
        streams = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
        stream = next(streams, None)
        if stream is None:
            raise MediaError("the file holds no video", "unsupported")
        context = stream.codec_context  # None where FFmpeg has no decoder, whatever PyAV's types say
        codec = None if context is None else context.codec.canonical_name  # pyright: ignore[reportUnnecessaryComparison]
        if codec not in limits.video_codecs:
            raise MediaError(f"the video's codec is not {one_of(limits.video_codecs)}: convert it", "unsupported")
        if context.width * context.height == 0:
            raise MediaError("the video's header has no frame size")
        check_pixels("video", context.width, context.height, limits.video_pixels)
        _check_seconds((container.duration or 0) / 1_000_000, limits)
        yield container, stream


def _check_seconds(seconds: float, limits: Limits) -> None:
    if seconds > limits.video_seconds:
        message = f"the video lasts {seconds:.0f} s, {limits.video_seconds:g} s are allowed: cut it"
        raise MediaError(message, "too-large")


def _ends_early(file: BinaryIO, container: Demuxer) -> bool:
    """Whether the outermost boxes promise more bytes than the file has. FFmpeg would hand out the part there is."""
    end, offset = file.seek(0, io.SEEK_END), 0
    while offset < end:
        file.seek(offset)
        head = file.read(20)  # no head of either kind has more than 16 bytes
        offset += _length(head, container, rest=end - offset)
    file.seek(0)
    return offset > end


def _length(head: bytes, container: Demuxer, rest: int) -> int:
    """Bytes of the box (MP4, MOV) or element (Matroska) that begins so, its head included."""
    if container == "mov":
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # the length stands behind the name, in eight bytes
            size = int.from_bytes(head[8:16], "big")
        return max(size, 8) if size else rest  # 0 means up to the end of the file
    # EBML numbers: as many zero bits lead as bytes follow the first.
    name = 9 - head[0].bit_length()
    width = 9 - head[name].bit_length() if name < len(head) else 9
    if max(name, width) > 8:
        return rest  # no element: bytes behind the last one are none of our business
    unknown = (1 << 7 * width) - 1  # a live recording
    size = int.from_bytes(head[name : name + width], "big") & unknown
    return name + width + size if size != unknown else rest


# ---- times ----


def _tick(stream: VideoStream) -> Fraction:
    assert stream.time_base is not None
    return stream.time_base


def _read_packets(container: InputContainer, stream: VideoStream, limits: Limits) -> tuple[VideoPackets, list[int]]:
    """All packets, undecoded, and the sorted times of the frames in them. Stops at the first limit crossed."""
    packets: VideoPackets = []
    times: list[int] = []
    tick = float(_tick(stream))
    with damaged("the video is damaged: store it again"):
        for packet in container.demux(stream):
            packets.append(packet)  # the discarded too: the decoder needs what other frames refer to
            time = packet.dts if packet.pts is None else packet.pts
            if packet.size == 0 or packet.is_discard or time is None:
                continue  # the end, or a frame that only others refer to
            times.append(time)
            _check_seconds(abs(time - times[0]) * tick, limits)
            if len(times) > limits.video_frames:
                message = f"the video has more than {limits.video_frames} frames: cut it"
                raise MediaError(message, "too-large")
    if not times:
        raise MediaError("the video has no frame in it")
    return packets, sorted(times)


def _clock(times: Sequence[int], declared: Fraction | None, tick: Fraction) -> tuple[float, Sequence[int]]:
    """The rate of the frames, and for each index the time of the frame that is on screen at that moment."""
    start, last = times[0], len(times) - 1
    if declared:
        # |(time - start) * tick - index / declared| <= tick, multiplied out into whole numbers, which do not round.
        step = tick.denominator * declared.denominator
        unit = tick.numerator * declared.numerator
        if all(abs((time - start) * unit - index * step) <= unit for index, time in enumerate(times)):
            return float(declared), times
    span = times[-1] - start
    if span == 0:
        raise MediaError("the video's frames carry no times: store it again")
    # Moment `index` is start + index * span / last. Both sides are scaled by `last`, which keeps them whole numbers.
    due = [bisect_right(times, index * span, key=lambda time: (time - start) * last) for index in range(last + 1)]
    return float(last / (span * tick)), [times[count - 1] for count in due]


# ---- pixels ----


def _draw_frames(
    stream: VideoStream, packets: VideoPackets, moments: list[int], limits: Limits, sizing: Sizing | None
) -> NDArray[np.uint8]:
    """Decode up to the last moment wanted; convert only what is wanted."""
    stream.codec_context.thread_count = 1  # the same bytes give the same frames, damaged ones included
    stream.codec_context.options = {"max_pixels": str(limits.video_pixels)}
    reformatter = VideoReformatter()
    frames_THWC = np.empty((0, 0, 0, 3), np.uint8)
    drawn: VideoFrame | None = None
    with damaged("the video is damaged: store it again"):
        for index, frame in enumerate(_on_screen(packets, moments)):
            if frame is drawn:  # on screen for more than one moment
                frames_THWC[index] = frames_THWC[index - 1]
                continue
            pixels_HWC = _pixels(frame, reformatter)
            if drawn is None:  # only now: the header's size is that before a rotation
                frames_THWC = _empty_clip(len(moments), pixels_HWC.shape, limits, sizing)
            height, width = frames_THWC.shape[1:3]
            if pixels_HWC.shape[:2] != (height, width):
                pixels_HWC = np.asarray(resized(Image.fromarray(np.ascontiguousarray(pixels_HWC)), height, width))
            frames_THWC[index] = pixels_HWC
            drawn = frame
    if drawn is None:
        raise MediaError("no frame of the video can be decoded: store it again")
    return frames_THWC


def _on_screen(packets: VideoPackets, moments: Sequence[int]) -> Iterator[VideoFrame]:
    """For each moment the last frame that is not later."""
    shown: VideoFrame | None = None
    index = 0
    for frame in (frame for packet in packets for frame in packet.decode()):  # in the order of display
        if shown is not None and (frame.width, frame.height) != (shown.width, shown.height):
            raise MediaError("the video's frame size changes on the way: convert it to one size", "unsupported")
        while shown is not None and index < len(moments) and frame.pts is not None and frame.pts > moments[index]:
            yield shown
            index += 1
        if index == len(moments):
            return
        shown = frame
    if shown is not None:
        for _ in moments[index:]:
            yield shown


def _pixels(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    if frame.is_corrupt:
        raise MediaError("a frame of the video is damaged: store it again")
    plane = reformatter.reformat(frame, format="rgb24", interpolation=_EXACT, threads=1).planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)  # rows are padded
    pixels_HWC = rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)
    return np.rot90(pixels_HWC, frame.rotation // 90) if frame.rotation % 90 == 0 else pixels_HWC


def _empty_clip(count: int, shape: tuple[int, ...], limits: Limits, sizing: Sizing | None) -> NDArray[np.uint8]:
    height, width = shape[:2] if sizing is None else fitting_size(shape[0], shape[1], sizing)
    if count * height * width > limits.clip_pixels:
        message = f"{count} frames of {width} x {height} pixels are more than the {limits.clip_pixels} pixels allowed"
        raise MediaError(f"{message}: take fewer or smaller frames", "too-large")
    return np.empty((count, height, width, 3), np.uint8)
