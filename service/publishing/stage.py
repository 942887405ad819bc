"""The folder of an upload, into which its files stream; each is hashed on the way and bounded by its size."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, Mapping
from contextlib import closing
from pathlib import Path

from adapters.manifest import WEIGHTS, FileEntry
from adapters.names import shown
from adapters.store import disk_full_as_user_error
from service.publishing.decisions import PublishRefusedError

_CHUNK = 2**20  # bytes that are gathered before a thread is asked to write them; the network's pieces are far smaller


class Sink:
    """A file of an upload, written and hashed in a thread a megabyte at a time."""

    def __init__(self, path: Path, limit: int) -> None:
        self._name = path.name
        self._limit = limit
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._num_bytes = 0
        self._waiting = bytearray()

    async def write(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        if self._num_bytes > self._limit:
            hint = "; its rank may be above the engine's --max-lora-rank" if self._name == WEIGHTS else ""
            words = f"{self._name}: more than the {self._limit} bytes that are allowed{hint}"
            raise PublishRefusedError("too-large", words)
        self._waiting += chunk
        if len(self._waiting) >= _CHUNK:
            await asyncio.to_thread(self._flush)

    async def finish(self) -> FileEntry:
        await asyncio.to_thread(self._flush)
        self.close()
        return FileEntry(sha256=self._hash.hexdigest(), bytes=self._num_bytes)

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        with memoryview(self._waiting) as waiting:
            self._hash.update(waiting)
            written = 0
            while written < len(waiting):  # an unbuffered file may take a part only
                written += self._file.write(waiting[written:])
        self._waiting = bytearray()


class Stage:
    """The folder of one upload. `receive` each part, then `Publisher.publish`."""

    def __init__(self, folder: Path, limits: Mapping[str, int]) -> None:
        self.folder = folder
        self.files: dict[str, FileEntry] = {}
        self.is_taken = False
        self._limits = limits

    async def receive(self, name: str, chunks: AsyncIterable[bytes]) -> FileEntry:
        """A file, from first to last byte; refused by its name, as the second of that name, or by its size."""
        if name not in self._limits:
            allowed = ", ".join(self._limits)
            raise PublishRefusedError("invalid", f"{shown(name)} is no file of an adapter; send {allowed}")
        path = self.folder / name
        if await asyncio.to_thread(path.exists):
            raise PublishRefusedError("invalid", f"{name}: sent twice")
        with disk_full_as_user_error("the store"):
            sink = await asyncio.to_thread(Sink, path, self._limits[name])
            with closing(sink):
                async for chunk in chunks:
                    await sink.write(chunk)
                self.files[name] = await sink.finish()
        return self.files[name]
