"""From what a request says to what the engine takes: ids, decoded media, and every check that needs the tokenizer.

A prompt of ids is unexpanded, one pad token for each image or video. The engine would expand ids that are expanded
already a second time without a word, so the pads are counted here.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

from adapters.errors import UserError
from service import schemas
from service.engine.vllm import Engine, EngineMedia
from service.media import Pixels, decode_image, decode_video


class InputError(UserError):
    """A request that the engine must not see; `where` is the path in its body."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.where = where


class Decoder:
    """Decodes in threads and keeps the last media, since the completions of a group come with the same ones."""

    def __init__(self, pixels: Pixels, keep: int = 256) -> None:
        self.pixels = pixels
        self._keep = keep
        self._decoded: OrderedDict[str, asyncio.Future[Any]] = OrderedDict()

    async def __call__(self, images: Sequence[bytes], videos: Sequence[bytes]) -> EngineMedia:
        return EngineMedia(
            tuple([await self._decode("image", data) for data in images]),
            tuple([await self._decode("video", data) for data in videos]),
        )

    async def _decode(self, kind: str, data: bytes) -> tuple[str, Any]:
        """With the name that stands for the pixels in the engine's caches."""
        name = f"{kind}-{hashlib.sha256(data).hexdigest()}"
        if name not in self._decoded:
            pixels = self.pixels
            if kind == "image":
                decode = partial(decode_image, data, pixels.limits, pixels.images)
            else:
                decode = partial(decode_video, data, pixels.limits, pixels.sampling, pixels.videos)
            # A future and not the pixels: who asks while they are being decoded waits for the same thread.
            self._decoded[name] = asyncio.ensure_future(asyncio.to_thread(decode))
            while len(self._decoded) > self._keep:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(name)
        future = self._decoded[name]
        try:
            return name, await asyncio.shield(future)  # a caller that hangs up does not fail the next one
        except Exception:
            self._decoded.pop(name, None)
            raise


def prompt_ids(prompt: list[int] | schemas.Chat, images: int, videos: int, engine: Engine, where: str) -> list[int]:
    """Unexpanded ids whose pads match the media."""
    if isinstance(prompt, schemas.Chat):
        ids = engine.chat_ids([message.model_dump() for message in prompt.messages])
    else:
        ids = prompt
        check_ids(ids, engine, where)
    if not ids:
        raise InputError(where, "the prompt is empty")
    for kind, media in (("image", images), ("video", videos)):
        pads = ids.count(engine.pads[kind])
        if pads != media:
            raise InputError(where, f"{pads} {kind} marks for {media} {kind}s; a prompt has one mark (one pad id) each")
    return ids


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
