"""Images and videos that were sent once and are named by `sha256:HEX` from then on.

A cache on disk, in the store's folder `.media`: the least recently used go above a limit, and whoever names a file that
is gone is told so and sends it again. A file appears under its name complete or not at all.

Also the only module that turns what stands in a request into bytes: base64 or such a name, and nothing that is fetched
or opened. Only headers are looked at here; `media` decodes the bytes when they are used.
"""

import asyncio
import base64
import binascii
import hashlib
import os
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterable, Iterable
from pathlib import Path

from adapters.store_root import sync
from service.http.problems import ProblemError
from service.media import Limits, MediaError, check_image, check_video, kind

_ID = re.compile(r"sha256:([0-9a-f]{64})")
_REFERENCE = re.compile(r"/(?!9j/)|.*[:\\%.~?#]", re.DOTALL)
"""A leading slash is a path, unless a JPEG file begins so; the other marks are not in base64 at all."""
_PART = ".part"
_WRITE_BYTES = 2**20  # gathered before a thread is asked to write: the network's pieces are far smaller


class MediaStore:
    """`limit_bytes` bounds the folder, `limits` a single file. Safe to call from many threads."""

    def __init__(self, folder: Path, limit_bytes: int, limits: Limits) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._limits = limits
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"*{_PART}"):
            leftover.unlink()
        stats = {path.name: path.lstat() for path in folder.iterdir() if is_id(f"sha256:{path.name}")}
        by_last_use = sorted(stats, key=lambda name: stats[name].st_mtime_ns)
        self._sizes = OrderedDict((name, stats[name].st_size) for name in by_last_use)
        with self._lock:
            self._evict()  # the limit may be a lower one than last time

    @property
    def stored_bytes(self) -> int:
        return sum(self._sizes.values())

    async def put(self, chunks: AsyncIterable[bytes]) -> str:
        """Store what arrives. The event loop only passes the chunks on; files are touched in threads."""
        upload = await asyncio.to_thread(_Upload, self._folder, self._largest())
        try:
            gathered = bytearray()
            async for chunk in chunks:
                gathered += chunk
                if len(gathered) >= _WRITE_BYTES:
                    await asyncio.to_thread(upload.write, bytes(gathered))
                    gathered.clear()
            await asyncio.to_thread(upload.write, bytes(gathered))
            return await asyncio.to_thread(self._keep, upload)
        finally:
            await asyncio.to_thread(upload.discard)

    def get(self, id: str) -> bytes:
        """404 `unknown-media` when it is not here (any more)."""
        name = _name(id)
        with self._lock:
            if name not in self._sizes:
                raise _unknown([id])
            self._sizes.move_to_end(name)
            path = self._folder / name
            try:
                os.utime(path)  # so that the order of use outlives the process
                file = path.open("rb")  # under the lock: an eviction between the two would be told as unknown media
            except FileNotFoundError:  # somebody made room by hand
                del self._sizes[name]
                raise _unknown([id]) from None
        with file:  # readable to its end even if it is removed meanwhile
            return file.read()

    def check_known(self, values: Iterable[str]) -> None:
        """A single answer tells all names among `values` that must be sent again."""
        with self._lock:
            unknown = [value for value in dict.fromkeys(values) if is_id(value) and _name(value) not in self._sizes]
        if unknown:
            raise _unknown(unknown)

    def resolve(self, value: str) -> bytes:
        """The bytes that a request means, by name or as base64."""
        return self.get(value) if value.startswith("sha256:") else decode(value, self._largest())

    def _largest(self) -> int:
        return min(max(self._limits.image_bytes, self._limits.video_bytes), self._limit_bytes)

    def _keep(self, upload: "_Upload") -> str:
        with upload.path.open("rb") as file:
            match kind(file.read(16)):
                case "image":
                    check_image(file, self._limits)
                case "video":
                    check_video(file, self._limits)
                case None:
                    raise MediaError("neither an image nor a video that can be read here: convert it", "unsupported")
        name = upload.finish()
        with self._lock:
            upload.path.replace(self._folder / name)  # over the same bytes, if it was there
            sync(self._folder)
            self._sizes[name] = upload.size
            self._sizes.move_to_end(name)
            self._evict()
        return f"sha256:{name}"

    def _evict(self) -> None:
        """The file used last stays: it alone is never above the limit, since none is taken that is larger."""
        total = sum(self._sizes.values())
        while total > self._limit_bytes:
            name, size = self._sizes.popitem(last=False)
            (self._folder / name).unlink(missing_ok=True)
            total -= size


class _Upload:
    """A file that has no name yet."""

    def __init__(self, folder: Path, limit: int) -> None:
        descriptor, path = tempfile.mkstemp(_PART, dir=folder)
        self.path = Path(path)
        self.size = 0
        self._limit = limit
        self._file = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise MediaError(f"more than the {self._limit} bytes allowed: make it smaller", "too-large")
        self._hash.update(data)
        self._file.write(data)
        self._file.flush()  # the header is read through a second descriptor, before this one is closed

    def finish(self) -> str:
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def discard(self) -> None:
        """What was kept has another name by now."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def is_id(value: str) -> bool:
    return _ID.fullmatch(value) is not None


def decode(value: str, limit: int) -> bytes:
    """Strict base64: no blanks, no line ends, no other alphabet."""
    if _REFERENCE.match(value[:256]):  # the rest need not be looked at, and may be a gigabyte
        message = "media travel as base64 or as the sha256:HEX that PUT /media answers; URLs and paths are not opened"
        raise ProblemError("media-reference", 422, message)
    if len(value) // 4 * 3 > limit + 2:  # four letters are three bytes, the last of which may be padding
        raise MediaError(f"more than the {limit} bytes allowed: make it smaller", "too-large")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError("media-reference", 422, "not base64 (RFC 4648, padded, without blanks)") from None


def _name(id: str) -> str:
    match = _ID.fullmatch(id)
    if match is None:
        raise ProblemError("media-reference", 422, "not a media id: sha256: and 64 digits of 0-9a-f")
    return match[1]


def _unknown(ids: list[str]) -> ProblemError:
    return ProblemError("unknown-media", 404, f"{len(ids)} unknown media; PUT /media them (again)", ids=ids)
