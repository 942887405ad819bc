"""From what a request says to what the engine takes: ids, decoded media, and every check that needs the tokenizer.

A prompt of ids is unexpanded, one pad token for each image or video. The engine would expand ids that are expanded
already a second time without a word, so the pads are counted here.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.errors import UserError
from service import schemas
from service.engine.vllm import EngineMedia
from service.media import Pixels, decode_image, decode_video


class InputError(UserError):
    """A request that the engine must not see; `where` is the path in its body."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the base's tokenizer knows."""

    size: int
    """Ids below it exist."""
    pads: dict[str, int]
    """Of `image` and `video`."""
    chat: Callable[[list[dict[str, Any]]], list[int]]
    encode: Callable[[str], list[int]]


class Decoder:
    """Decodes in threads and keeps the last media, since the completions of a group come with the same ones."""

    def __init__(self, pixels: Pixels, keep: int = 256) -> None:
        self._pixels = pixels
        self._keep = keep
        self._decoded: OrderedDict[str, asyncio.Future[Any]] = OrderedDict()

    async def __call__(self, images: Sequence[bytes], videos: Sequence[bytes]) -> EngineMedia:
        return EngineMedia(
            tuple([await self._one("image", data) for data in images]),
            tuple([await self._one("video", data) for data in videos]),
        )

    async def _one(self, kind: str, data: bytes) -> tuple[str, Any]:
        name = f"{kind}-{hashlib.sha256(data).hexdigest()}"
        if name not in self._decoded:
            decode = self._image if kind == "image" else self._video
            self._decoded[name] = asyncio.ensure_future(asyncio.to_thread(decode, data))
            while len(self._decoded) > self._keep:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(name)
        future = self._decoded[name]
        try:
            return name, await asyncio.shield(future)
        except Exception:
            self._decoded.pop(name, None)
            raise

    def _image(self, data: bytes) -> Any:
        return decode_image(data, self._pixels.limits, self._pixels.images)

    def _video(self, data: bytes) -> Any:
        return decode_video(data, self._pixels.limits, self._pixels.sampling, self._pixels.videos)


def prompt_ids(
    prompt: list[int] | schemas.Chat, images: int, videos: int, vocabulary: Vocabulary, where: str
) -> list[int]:
    """Unexpanded ids whose pads match the media."""
    if isinstance(prompt, schemas.Chat):
        ids = vocabulary.chat([message.model_dump() for message in prompt.messages])
    else:
        ids = prompt
        check_ids(ids, vocabulary, where)
    if not ids:
        raise InputError(where, "the prompt is empty")
    for kind, media in (("image", images), ("video", videos)):
        pads = ids.count(vocabulary.pads[kind])
        if pads != media:
            raise InputError(where, f"{pads} {kind} marks for {media} {kind}s; a prompt has one mark (one pad id) each")
    return ids


def completion_ids(completion: list[int] | str, vocabulary: Vocabulary, where: str) -> list[int]:
    ids = vocabulary.encode(completion) if isinstance(completion, str) else completion
    check_ids(ids, vocabulary, where)
    if not ids:
        raise InputError(where, "the completion is empty, there is nothing to score")
    if any(ids.count(pad) for pad in vocabulary.pads.values()):
        raise InputError(where, "a completion holds no image or video pad tokens")
    return ids


def check_ids(ids: Sequence[int], vocabulary: Vocabulary, where: str) -> None:
    if ids and max(ids) >= vocabulary.size:
        raise InputError(where, f"token id {max(ids)} does not exist; the vocabulary has {vocabulary.size}")
