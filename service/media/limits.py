"""What is decoded at all, and how a refusal reads."""

import io
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import UserError

Reason = Literal["unsupported", "too-large", "damaged"]
ImageFormat = Literal["PNG", "JPEG", "WEBP"]
Codec = Literal["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "ffv1"]
Demuxer = Literal["mov", "matroska"]


class MediaError(UserError):
    """What is wrong with an image or a video, and the remedy; `reason` is for counting and for status codes."""

    def __init__(self, message: str, reason: Reason = "damaged") -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Limits(BaseModel):
    """Bounds, each checked as early as a file allows: all but `clip_pixels` before the first pixel is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_bytes: int = Field(default=20 * 2**20, gt=0)
    image_pixels: int = Field(default=50_000_000, gt=0)
    """Width times height in the header; the default lets a 48-megapixel photograph in."""
    image_formats: tuple[ImageFormat, ...] = ("PNG", "JPEG", "WEBP")
    video_bytes: int = Field(default=256 * 2**20, gt=0)
    video_pixels: int = Field(default=4096 * 2304, gt=0)
    """Width times height of a frame in the file; the default is a little more than 4K."""
    video_seconds: float = Field(default=600.0, gt=0)
    video_frames: int = Field(default=60 * 600, gt=0)
    """Frames in the file, wanted or not: reaching a frame means decoding those before it."""
    video_codecs: tuple[Codec, ...] = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "ffv1")
    clip_pixels: int = Field(default=2**28, gt=0)
    """All frames returned together, after resizing; three bytes each, so the default is 768 MiB."""


def kind(head: bytes) -> Literal["image", "video"] | None:
    """A file's kind by its first 16 bytes, whatever its name says."""
    if image_format(head) is not None:
        return "image"
    return "video" if demuxer(head) is not None else None


def image_format(head: bytes) -> ImageFormat | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def demuxer(head: bytes) -> Demuxer | None:
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML: Matroska and WebM
        return "matroska"
    # MP4 and MOV have no magic number: a box's name follows its length, and these are the boxes that come first.
    return "mov" if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") else None


def check_bytes(kind: str, file: BinaryIO, limit: int) -> bytes:
    """The first 16 bytes of a file of bearable size."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size > limit:
        raise MediaError(f"the {kind} has {size} bytes, {limit} are allowed: make it smaller", "too-large")
    if size == 0:
        raise MediaError(f"the {kind} is empty")
    head = file.read(16)
    file.seek(0)
    return head


def check_pixels(kind: str, width: int, height: int, limit: int) -> None:
    if width * height > limit:
        message = f"the {kind} has {width} x {height} pixels, {limit} are allowed: make it smaller"
        raise MediaError(message, "too-large")


@contextmanager
def damaged(message: str) -> Generator[None]:
    """A foreign library's failure becomes our one line."""
    try:
        yield
    except MediaError:
        raise
    except Exception:  # decoders raise nearly anything for damaged bytes, with addresses of this process in it
        raise MediaError(message) from None


def one_of(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else "".join(names)
