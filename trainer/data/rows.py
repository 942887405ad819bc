"""One row of a data set as a prompt: its cells read through the column mapping, its media found, checked and read."""

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
from trainer.data.records import Row
from trainer.parts import ChatMessage, Prompt

Source = bytes | Path
"""An encoded file: itself, or where it lies."""
Film = Source | tuple[Source, ...]
"""A video: a file, or its frames as images."""

Check = Literal["header", "pixels"]
"""How deep media are looked into before they are used."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a row becomes a prompt."""

    capability: str
    columns: Mapping[str, str]
    system: str | None
    suffix: str | None
    media_root: Path | None
    frames_fps: float
    limits: Limits


@dataclass(frozen=True, slots=True)
class Draft:
    """The cells of a row, their media found but not read."""

    root: Path
    """Where paths start from."""
    text: Any
    answer: Any
    images: tuple[Source, ...]
    videos: tuple[Film, ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """A video by its header."""

    size: tuple[int, int]
    """Height and width of a frame."""
    seconds: float | None
    """None: the header does not say."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A draft's text, and the sizes of its media."""

    messages: tuple[ChatMessage, ...]
    images: tuple[tuple[int, int], ...]
    videos: tuple[Clip, ...]


def draft_of(row: Row, reading: Reading, folder: Path) -> Draft:
    """The cells of a row; `folder` is where paths start from unless the reading says so."""
    columns, root = reading.columns, reading.media_root or folder
    images: tuple[Source, ...] = ()
    videos: tuple[Film, ...] = ()
    if column := columns.get("images"):
        with _column(column):
            images = _sources(_cell(row, column), root)
    if column := columns.get("videos"):
        with _column(column):
            videos = _films(_cell(row, column), root)
    return Draft(root, _cell(row, columns["prompt"]), _cell(row, columns["answer"]), images, videos)


def check_draft(draft: Draft, reading: Reading, check: Check) -> bytes:
    """The hash of what a prompt of this draft is made of, once nothing is found wrong with it."""
    messages, answer = _texts(draft, reading)
    with _column(reading.columns.get("images", "")):
        for image in draft.images:
            _check_image(image, reading.limits, check)
    with _column(reading.columns.get("videos", "")):
        for film in draft.videos:
            _check_film(film, reading, check)
    media = [
        [_trace(source, draft.root) for source in draft.images],
        [_trace(film, draft.root) for film in draft.videos],
    ]
    rate = reading.frames_fps if any(isinstance(film, tuple) for film in draft.videos) else None
    return bytes.fromhex(digest([messages, answer, media, rate]))


def measure(draft: Draft, reading: Reading) -> Measured:
    """From headers alone."""
    messages, _ = _texts(draft, reading)
    images = tuple(_check_image(image, reading.limits, "header") for image in draft.images)
    clips = tuple(_check_film(film, reading, "header") for film in draft.videos)
    return Measured(messages, images, clips)


def _texts(draft: Draft, reading: Reading) -> tuple[tuple[ChatMessage, ...], str]:
    with _column(reading.columns["prompt"]):
        if not isinstance(draft.text, str | Sequence):
            raise PromptError("neither a text nor a list of messages")
        counts = len(draft.images), len(draft.videos)
        messages = chat(draft.text, *counts, system=reading.system, suffix=reading.suffix)
    with _column(reading.columns["answer"]):
        return messages, answer_text(draft.answer)


def build(draft: Draft, reading: Reading) -> Prompt:
    """The prompt, its media read; frames become a video."""
    images = [_bytes(image) for image in draft.images]
    with _column(reading.columns.get("videos", "")):
        videos = [_video_bytes(film, reading.frames_fps, reading.limits) for film in draft.videos]
    return make_prompt(
        reading.capability, draft.text, draft.answer, images, videos, system=reading.system, suffix=reading.suffix
    )


def _cell(row: Row, column: str) -> Any:
    value: Any = row
    for key in [column] if column in row else column.split("."):
        value = cast(Mapping[str, Any], value).get(key) if isinstance(value, Mapping) else None
    return value


# ---- media ----


def _sources(cell: Any, root: Path) -> tuple[Source, ...]:
    if cell is None or cell == "":  # CSV has no other way to say nothing
        return ()
    items = cast(list[Any], cell) if isinstance(cell, list) else [cell]
    return tuple(_source(item, root) for item in items)


def _films(cell: Any, root: Path) -> tuple[Film, ...]:
    items = cast(list[Any], cell) if isinstance(cell, list) else []
    if any(isinstance(item, list) for item in items):
        return tuple(_sources(item, root) for item in items)
    sources = _sources(cell, root)
    if not items:
        return sources
    with _open(sources[0]) as file:
        return (sources,) if kind(file.read(16)) == "image" else sources


def _source(item: Any, root: Path) -> Source:
    if isinstance(item, Mapping):
        entry = cast(Mapping[str, Any], item)
        item = entry.get("path") if entry.get("bytes") is None else entry["bytes"]
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str):
        raise PromptError(f"a {type(item).__name__} is neither bytes nor a path", "media-missing")
    return _path(item, root)


def _path(name: str, root: Path) -> Path:
    """A file under the root. Others are refused: a data set from elsewhere must not read what it likes here."""
    try:
        path = (root / name).resolve()
        there = path.is_file()
    except (OSError, ValueError):  # too long, or with a zero byte
        raise PromptError("not a path", "media-missing") from None
    if not path.is_relative_to(root):
        message = f"{name} leads out of {root}, and only what lies in it is read; set media_root to a folder above both"
        raise PromptError(message, "media-outside")
    if not there:
        raise PromptError(f"{name}: no such file in {root}; set media_root to where the paths start", "media-missing")
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


def _check_film(film: Film, reading: Reading, check: Check) -> Clip:
    limits = reading.limits
    if isinstance(film, tuple):
        size = _only_size({_check_image(frame, limits, check) for frame in film})
        return Clip(size, len(film) / reading.frames_fps)
    with _open(film) as file:
        height, width, seconds = check_video(file, limits)
    if check == "pixels":
        decode_video(_bytes(film), limits, Sampling(max_frames=2))  # the first frame, and the last after all others
    return Clip((height, width), seconds)


def _only_size(sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise PromptError("the frames of a video are not of one size" if sizes else "a video without frames", "frames")
    return sizes.pop()


def _video_bytes(film: Film, fps: float, limits: Limits) -> bytes:
    if not isinstance(film, tuple):
        return _bytes(film)
    frames = [decode_image(_bytes(frame), limits) for frame in film]
    _only_size({(frame.height, frame.width) for frame in frames})
    return encode_video(np.stack([np.asarray(frame) for frame in frames]), fps)


def _trace(film: Film, root: Path) -> Any:
    """What stands for media in a hash: of bytes their own, of a file where it lies and its size."""
    if isinstance(film, tuple):
        return [_trace(frame, root) for frame in film]
    if isinstance(film, bytes):
        return hashlib.sha256(film).hexdigest()
    return [film.relative_to(root).as_posix(), film.stat().st_size]


@contextmanager
def _column(column: str) -> Generator[None]:
    try:
        yield
    except (PromptError, MediaError) as error:
        raise PromptError(f"column {column!r}: {error}", error.reason) from None
