"""A row of a data set as a prompt: its cells read through the column mapping, its media located, checked and read."""

import hashlib
import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from service.media import (
    Limits,
    MediaError,
    Sampling,
    check_image,
    check_video,
    decode_image,
    decode_video,
    encode_video,
    kind,
)
from trainer.data.prompts import PromptError, answer_text, chat, digest, make_prompt
from trainer.data.questions import AnswerAs, answer_letter, matched_answer, options_of, split_chat, with_options
from trainer.data.records import Row
from trainer.parts import ChatMessage, Prompt

Source = bytes | Path
"""An encoded file: itself, or where it lies."""
VideoSource = Source | tuple[Source, ...]
"""A video: a file, or its frames as images."""

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_CLIPS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_LONGEST_PATH = 512
"""Characters of a path at most; a longer text that ends in .png is prose."""

Check = Literal["header", "pixels"]
"""The depth of a check of media. Decoding all pixels shows more damage, and takes far longer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The settings by which a row becomes a prompt."""

    capability: str
    columns: Mapping[str, str]
    system: str | None
    suffix: str | None
    media_root: Path | None
    frames_fps: float
    limits: Limits
    options: tuple[str, ...] = ()
    """The columns of the options, in their order."""
    answer_pattern: str | None = None
    answer_as: AnswerAs | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """The cells of a row, their media located but not read."""

    root: Path
    """Where paths start from."""
    text: Any
    answer: Any
    images: tuple[Source, ...]
    videos: tuple[VideoSource, ...]


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """The facts in a video's header."""

    size: tuple[int, int]
    """Height and width of a frame."""
    seconds: float | None
    """None: the header does not say."""


@dataclass(frozen=True, slots=True)
class PromptSizes:
    """The text and the sizes of the media, which decide how many tokens a prompt takes."""

    messages: tuple[ChatMessage, ...]
    images: tuple[tuple[int, int], ...]
    """Height and width of each."""
    videos: tuple[VideoHeader, ...]


def draft_of(row: Row, reading: Reading, folder: Path) -> Draft:
    """The cells of a row; `folder` is where paths start from unless the reading says so."""
    columns, root = reading.columns, reading.media_root or folder
    images: tuple[Source, ...] = ()
    videos: tuple[VideoSource, ...] = ()
    if column := columns.get("images"):
        with _column(column):
            images = _sources(cell(row, column), root)
    if column := columns.get("videos"):
        with _column(column):
            videos = _videos(cell(row, column), root)
    return Draft(root, *_question(row, reading), images, videos)


def _question(row: Row, reading: Reading) -> tuple[Any, Any]:
    """The question and the answer as a row means them: neither is checked yet."""
    columns = reading.columns
    text, last = split_chat(cell(row, columns["prompt"]))
    is_in_chat = columns["answer"] == columns["prompt"]
    answer = last if is_in_chat else cell(row, columns["answer"])
    with _column(columns["answer"]):
        if is_in_chat and last is None:
            raise PromptError("the last message is not the assistant's, who would give the answer", "answer")
        if reading.answer_pattern is not None:
            answer = matched_answer(answer, reading.answer_pattern)
    if reading.options:
        with _column(", ".join(reading.options)):
            options = options_of([cell(row, column) for column in reading.options])
        with _column(columns["answer"]):
            text, answer = with_options(text, options), answer_letter(answer, options, reading.answer_as)
    return text, answer


def check_draft(draft: Draft, reading: Reading, check: Check) -> bytes:
    """The hash of what a prompt of this draft is made of. An error if something is wrong with it."""
    messages, answer = _texts(draft, reading)
    with _column(reading.columns.get("images", "")):
        for image in draft.images:
            _check_image(image, reading.limits, check)
    with _column(reading.columns.get("videos", "")):
        for video in draft.videos:
            _check_video(video, reading, check)
    media = [
        [_identity(image, draft.root) for image in draft.images],
        [_identity(video, draft.root) for video in draft.videos],
    ]
    # The rate makes another video of the same frames, and nothing of a file, which has its own.
    rate = reading.frames_fps if any(isinstance(video, tuple) for video in draft.videos) else None
    return bytes.fromhex(digest([messages, answer, media, rate]))


def measure(draft: Draft, reading: Reading) -> PromptSizes:
    """The sizes of a draft, from headers alone."""
    messages, _ = _texts(draft, reading)
    images = tuple(_check_image(image, reading.limits, "header") for image in draft.images)
    return PromptSizes(messages, images, tuple(_check_video(video, reading, "header") for video in draft.videos))


def _texts(draft: Draft, reading: Reading) -> tuple[tuple[ChatMessage, ...], str]:
    with _column(reading.columns["prompt"]):
        if not isinstance(draft.text, str | Sequence):
            raise PromptError("neither a text nor a list of messages")
        counts = len(draft.images), len(draft.videos)
        messages = chat(draft.text, *counts, system=reading.system, suffix=reading.suffix)
    # In a block of its own, so that the error names the right column.
    with _column(reading.columns["answer"]):
        return messages, answer_text(draft.answer)


def build(draft: Draft, reading: Reading) -> Prompt:
    """The prompt, its media read; frames become a video."""
    images = [_bytes(image) for image in draft.images]
    with _column(reading.columns.get("videos", "")):
        videos: list[bytes] = []
        for video in draft.videos:
            if isinstance(video, tuple):
                frames = [decode_image(_bytes(frame), reading.limits) for frame in video]
                # Again, after `check_draft`: files may have changed since the data set was opened.
                _only_size({(frame.height, frame.width) for frame in frames})
                videos.append(encode_video(np.stack([np.asarray(frame) for frame in frames]), reading.frames_fps))
            else:
                videos.append(_bytes(video))
    return make_prompt(
        reading.capability, draft.text, draft.answer, images, videos, system=reading.system, suffix=reading.suffix
    )


def keys_of(row: Row, column: str) -> list[str]:
    """The keys that lead to a column: itself, or one for each word between dots where no column has that name."""
    return [column] if column in row else column.split(".")


def cell(row: Row, column: str) -> Any:
    """The value of a column, None where a row has none."""
    value: Any = row
    for key in keys_of(row, column):
        value = cast(Mapping[str, Any], value).get(key) if isinstance(value, Mapping) else None
    return value


# ---- media ----


def bytes_or_path(item: Any) -> Any:
    """A medium as it stands in a row, out of the {"bytes", "path"} that `datasets` makes of it."""
    if not isinstance(item, Mapping):
        return item
    entry = cast(Mapping[str, Any], item)
    return entry.get("path") if entry.get("bytes") is None else entry["bytes"]


def medium_of(value: Any) -> Literal["images", "videos"] | None:
    """The kind of media that a cell holds by its look: bytes, or a path with the end of a picture's or a clip's."""
    if isinstance(value, list) and value:
        return medium_of(cast(list[Any], value)[0])
    item = bytes_or_path(value)
    if isinstance(item, bytes):
        medium = kind(item[:16])
        return "images" if medium == "image" else "videos" if medium else None
    suffix = Path(item).suffix.lower() if isinstance(item, str) and len(item) < _LONGEST_PATH else ""
    return "images" if suffix in _PICTURES else "videos" if suffix in _CLIPS else None


def _sources(value: Any, root: Path) -> tuple[Source, ...]:
    if value is None or value == "":  # CSV has no other way to say nothing
        return ()
    items = cast(list[Any], value) if isinstance(value, list) else [value]
    return tuple(_source(bytes_or_path(item), root) for item in items)


def _videos(value: Any, root: Path) -> tuple[VideoSource, ...]:
    items = cast(list[Any], value) if isinstance(value, list) else []
    if any(isinstance(item, list) for item in items):
        return tuple(_sources(item, root) for item in items)
    sources = _sources(value, root)
    if not items:
        return sources
    # A flat list is several videos, or the frames of one: only the first file's content tells.
    with _open(sources[0]) as file:
        return (sources,) if kind(file.read(16)) == "image" else sources


def _source(item: Any, root: Path) -> Source:
    """Bytes, or a file under the root."""
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str):
        raise PromptError(f"a {type(item).__name__} is neither bytes nor a path", "media-missing")
    try:
        path = (root / item).resolve()  # links too: one that lies inside may lead out
        is_file = path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        raise PromptError("not a path", "media-missing") from None
    # Outside is refused, there or not: a data set from elsewhere must not read, or find out, what it likes here.
    if not path.is_relative_to(root):
        message = f"{item} leads out of {root}, and only what lies in it is read; set media_root to a folder above both"
        raise PromptError(message, "media-outside")
    if not is_file:
        raise PromptError(f"{item}: no such file in {root}; set media_root to where the paths start", "media-missing")
    return path


def _open(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _bytes(source: Source) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _check_image(image: Source, limits: Limits, check: Check) -> tuple[int, int]:
    with _open(image) as file:
        size = check_image(file, limits)
    if check == "pixels":
        decode_image(_bytes(image), limits)
    return size


def _check_video(video: VideoSource, reading: Reading, check: Check) -> VideoHeader:
    limits = reading.limits
    if isinstance(video, tuple):
        size = _only_size({_check_image(frame, limits, check) for frame in video})
        return VideoHeader(size, len(video) / reading.frames_fps)
    with _open(video) as file:
        height, width, seconds = check_video(file, limits)
    if check == "pixels":
        decode_video(_bytes(video), limits, Sampling(max_frames=2))  # the first frame, and the last after all others
    return VideoHeader((height, width), seconds)


def _only_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise PromptError("the frames of a video are not of one size" if sizes else "a video without frames", "frames")
    return sizes.pop()


def _identity(video: VideoSource, root: Path) -> Any:
    """The value that stands for a medium in a hash."""
    if isinstance(video, tuple):
        return [_identity(frame, root) for frame in video]
    if isinstance(video, bytes):
        return hashlib.sha256(video).hexdigest()
    # Path and size, not content: at each load every file of a large data set would be read.
    return [video.relative_to(root).as_posix(), video.stat().st_size]


@contextmanager
def _column(column: str) -> Generator[None]:
    try:
        yield
    except (PromptError, MediaError) as error:
        raise PromptError(f"column {column!r}: {error}", error.reason) from None
