"""From what a request says to what the engine takes: ids, decoded media, and every check that needs the tokenizer.

A prompt of ids is unexpanded, one pad token for each image or video. The engine would expand ids that are expanded
already a second time without a word, so the pads are counted here.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from adapters.errors import UserError
from service import schemas
from service.caching import ByteCache
from service.engine.vllm import Engine, EngineMedia
from service.media import Pixels, Video, decode_image, decode_video


class InputError(UserError):
    """A request that the engine must not see; `where` is the path in its body."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class Decoder:
    """Decodes in threads and keeps the last media, since the completions of a group come with the same ones.

    `keep_bytes` bounds the pixels that are kept, `decoders` what is decoded at a time.
    """

    def __init__(self, pixels: Pixels, *, keep_bytes: int = 2**30, decoders: int = 4) -> None:
        self.pixels = pixels
        self._decoded: ByteCache[Any] = ByteCache(keep_bytes)
        self._decoding: dict[str, asyncio.Future[Any]] = {}
        self._decoders = asyncio.Semaphore(decoders)

    async def __call__(self, images: Sequence[bytes], videos: Sequence[bytes]) -> EngineMedia:
        return EngineMedia(
            tuple([await self._decode("image", data) for data in images]),
            tuple([await self._decode("video", data) for data in videos]),
        )

    async def _decode(self, kind: str, data: bytes) -> tuple[str, Any]:
        """With the name that stands for the pixels in the engine's caches."""
        name = f"{kind}-{(await asyncio.to_thread(hashlib.sha256, data)).hexdigest()}"
        if (known := self._decoded.get(name)) is not None:
            return name, known
        if name not in self._decoding:
            # A future and not the pixels: who asks while they are being decoded waits for the same thread.
            self._decoding[name] = future = asyncio.ensure_future(self._pixels(kind, data))
            future.add_done_callback(lambda _: self._decoding.pop(name))
        pixels = await asyncio.shield(self._decoding[name])  # a caller that hangs up does not fail the next one
        self._decoded.put(name, pixels, _pixel_bytes(pixels))
        return name, pixels

    async def _pixels(self, kind: str, data: bytes) -> Image | Video:
        bounds = self.pixels
        async with self._decoders:
            if kind == "image":
                return await asyncio.to_thread(decode_image, data, bounds.limits, bounds.images)
            return await asyncio.to_thread(decode_video, data, bounds.limits, bounds.sampling, bounds.videos)


def _pixel_bytes(pixels: Image | Video) -> int:
    return 3 * pixels.width * pixels.height if isinstance(pixels, Image) else pixels.frames_THWC.nbytes


def prompt_ids(prompt: list[int] | schemas.Chat, images: int, videos: int, engine: Engine, where: str) -> list[int]:
    """Unexpanded ids whose pads match the media."""
    check_vision(bool(images or videos) or _has_media(prompt), engine, where)
    if isinstance(prompt, schemas.Chat):
        ids = engine.chat_ids([message.model_dump() for message in prompt.messages])
    else:
        ids = prompt
        check_ids(ids, engine, where)
    if not ids:
        raise InputError(where, "the prompt is empty")
    for kind, pad in engine.pads.items():
        pads, media = ids.count(pad), images if kind == "image" else videos
        if pads != media:
            raise InputError(where, f"{pads} {kind} marks for {media} {kind}s; a prompt has one mark (one pad id) each")
    return ids


def _has_media(prompt: list[int] | schemas.Chat) -> bool:
    contents = [message.content for message in prompt.messages] if isinstance(prompt, schemas.Chat) else []
    return any(isinstance(part, schemas.MediaPart) for content in contents for part in content)


def check_vision(has_media: bool, engine: Engine, where: str) -> None:
    if has_media and not engine.pads:
        raise InputError(where, "the base reads text alone; leave images and videos out, or serve one with vision")


def completion_ids(completion: list[int] | str, engine: Engine, where: str) -> list[int]:
    ids = engine.text_ids(completion) if isinstance(completion, str) else completion
    check_ids(ids, engine, where)
    if not ids:
        raise InputError(where, "the completion is empty, there is nothing to score")
    if any(ids.count(pad) for pad in engine.pads.values()):
        raise InputError(where, "a completion holds no image or video pad tokens")
    return ids


def check_ids(ids: Sequence[int], engine: Engine, where: str) -> None:
    if ids and max(ids) >= engine.vocabulary_size:
        raise InputError(where, f"token id {max(ids)} does not exist; the vocabulary has {engine.vocabulary_size}")
