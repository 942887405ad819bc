"""Which revisions the engine holds, and who is using them.

    async with registry.acquire("image@17") as served:   # or "image" (its head), "base", or an extra adapter
        ...                                              # served.handle stays loaded in here, whatever is published

Kept revisions are loaded from the store when they are first asked for; those asked for longest ago leave when there
are more than `capacity`. What is in use never leaves: a request ends on the revision that it began on, a retired
revision goes when its last request ends, and above the capacity are only adapters in use. One name of the engine
never means two contents, since the engine's caches go by the name.

Everything here runs on one event loop; files are touched in threads.
"""

import asyncio
import logging
import re
import shutil
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from adapters.errors import UserError
from adapters.manifest import FileEntry, Manifest, verify
from adapters.names import BASE, Ref
from adapters.precision import Dtype
from adapters.store import Store, disk_full_as_user_error
from adapters.tensor_files import served_copy

# The folders that a registry makes in its cache, and nothing else that may lie there.
_CACHED = re.compile(r"[a-z][a-z0-9_-]{0,47}@[0-9]{1,9}(~[0-9]+)?(\.tmp)?")

log = logging.getLogger(__name__)


class AdapterLoadError(UserError):
    """The engine does not take the adapter; it goes on without it."""


class UnavailableError(UserError):
    """No such adapter (404), or none any more (410)."""

    def __init__(self, kind: Literal["unknown-adapter", "retired-adapter"], message: str) -> None:
        super().__init__(message)
        self.kind: Literal["unknown-adapter", "retired-adapter"] = kind


class Loader(Protocol):
    """The engine, as far as adapters go."""

    async def load(self, name: str, folder: Path) -> Any:
        """A handle for requests. `name` never comes again with other content. Raises AdapterLoadError."""
        ...

    async def unload(self, handle: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class Served:
    """A revision that can be used now."""

    branch: str
    revision: int
    digest: str
    handle: Any
    """The engine's own; None: the base itself."""


@dataclass(frozen=True, slots=True)
class Extra:
    """An adapter that is in no store: a merge, served to be measured. It never changes."""

    folder: Path
    digest: str


@dataclass(eq=False, slots=True)
class _Entry:
    ref: Ref
    name: str
    folder: Path
    loading: asyncio.Task[Served]
    num_users: int = 0


class Registry:
    """`cache` is a folder of this registry's own; what an earlier one left there is removed."""

    def __init__(
        self,
        store: Store,
        loader: Loader,
        cache: Path,
        *,
        dtype: Dtype,
        capacity: int,
        extras: Mapping[str, Extra] | None = None,
    ) -> None:
        self.heads = {name: branch.head for name, branch in store.branches.items()}
        """What a branch's name alone stands for."""
        self.extras = dict(extras or {})
        self._store = store
        self._loader = loader
        self._cache = cache
        self.dtype: Dtype = dtype
        self._capacity = capacity
        self._entries: OrderedDict[Ref, _Entry] = OrderedDict()  # the entry asked for longest ago is first
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._retired: set[Ref] = set()  # before the store knows: it is told when nothing is read from it any more
        self._digests: dict[Ref, list[str]] = {}
        cache.mkdir(parents=True, exist_ok=True)
        for folder in cache.iterdir():
            if _CACHED.fullmatch(folder.name):
                shutil.rmtree(folder)

    @property
    def users(self) -> Mapping[Ref, int]:
        """How many use each adapter that the engine holds."""
        return {ref: entry.num_users for ref, entry in self._entries.items()}

    def find(self, ref: Ref) -> Manifest:
        """The manifest of a revision that can be served, of the head if none is named."""
        branch = self._store.branch(ref.branch)
        head = self.heads.get(ref.branch)
        if head is None:
            raise UnavailableError("unknown-adapter", f"{ref}: there is no branch {ref.branch}")
        revision = head if ref.revision is None else ref.revision
        if revision in branch.retired or ref in self._retired:
            raise UnavailableError("retired-adapter", f"{ref} was retired; the head is {ref.branch}@{head}")
        if revision not in branch.live:
            raise UnavailableError("unknown-adapter", f"{ref}: there is no such revision; the head is {head}")
        return branch.live[revision]

    @asynccontextmanager
    async def acquire(self, name: str) -> AsyncGenerator[Served]:
        """A revision, loaded, until the block ends. A branch's name is its head as it is now."""
        ref = Ref.parse(name)
        if ref.branch == BASE:
            yield Served(BASE, 0, self._store.base, None)
            return
        if (extra := self.extras.get(ref.branch)) is not None and not ref.revision:
            ref, digest, folder, files = Ref(ref.branch, 0), extra.digest, extra.folder, {}
        else:
            manifest = self.find(ref)
            if not manifest.files:  # revision 0 of a branch that began at the base: it has no weights of its own
                yield Served(manifest.branch, manifest.revision, manifest.digest, None)
                return
            ref, digest, files = manifest.ref, manifest.digest, manifest.adapter_files
            folder = self._store.folder(ref)
        entry = self._entries.get(ref) or self._enter(ref, digest, folder, files)
        self._entries.move_to_end(ref)
        async with self._using(entry) as served:
            yield served

    @asynccontextmanager
    async def trial(self, ref: Ref, digest: str, folder: Path) -> AsyncGenerator[Served]:
        """An adapter that is no revision yet, loaded from a staging folder. It stays if it has become one in here."""
        entry = self._enter(ref, digest, folder, {})
        try:
            async with self._using(entry) as served:
                yield served
        finally:
            if ref.revision not in self._store.branch(ref.branch).live:
                self._remove(entry)
                # The caller deletes the staging folder next, and the next trial of this revision may come at once.
                await asyncio.gather(*filter(None, [self._leaving.get(entry.name)]), return_exceptions=True)

    def flip(self, ref: Ref) -> None:
        """From here on the branch's name means this revision."""
        assert ref.revision is not None
        # Never backwards: a retry may announce a revision when a later one is the head.
        self.heads[ref.branch] = max(ref.revision, self.heads.get(ref.branch, 0))

    async def retire(self, ref: Ref) -> None:
        """Nobody gets it from here on; who has it keeps it. On return nothing is read from the store any more."""
        self._retired.add(ref)
        if ref in self._entries:
            await asyncio.wait([self._entries[ref].loading])
        self._tidy()

    async def close(self) -> None:
        """When no request is left: unload everything, leave nothing in the cache."""
        for entry in list(self._entries.values()):
            await asyncio.wait([entry.loading])
            self._remove(entry)
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)

    @asynccontextmanager
    async def _using(self, entry: _Entry) -> AsyncGenerator[Served]:
        entry.num_users += 1
        try:
            yield await asyncio.shield(entry.loading)  # one user that gives up does not stop the load for the others
        finally:
            entry.num_users -= 1
            self._tidy()

    def _enter(self, ref: Ref, digest: str, source: Path, files: Mapping[str, FileEntry]) -> _Entry:
        # `image@17`; `image@17~2` for other content after a first `image@17` was refused or found damaged.
        digests = self._digests.setdefault(ref, [])
        if digest not in digests:
            digests.append(digest)
        number = digests.index(digest) + 1
        name = str(ref) if number == 1 else f"{ref}~{number}"

        def forget_failure(task: asyncio.Task[Served]) -> None:
            # The next user tries again. It may have done so already, so look whether the entry is still this one.
            if (task.cancelled() or task.exception() is not None) and self._entries.get(ref) is entry:
                del self._entries[ref]
            self._tidy()

        served = self._load(name, ref, digest, source, files)
        entry = _Entry(ref, name, self._cache / name, asyncio.create_task(served, name=f"load {name}"))
        entry.loading.add_done_callback(forget_failure)
        self._entries[ref] = entry
        self._tidy()
        return entry

    async def _load(self, name: str, ref: Ref, digest: str, source: Path, files: Mapping[str, FileEntry]) -> Served:
        folder = self._cache / name

        def copy() -> None:
            verify(source, files)
            with disk_full_as_user_error("the adapter cache"):
                served_copy(source, folder, self.dtype)

        if name in self._leaving:  # its folder would be deleted under the new copy
            await self._leaving[name]
        try:
            await asyncio.to_thread(copy)
            handle = await self._loader.load(name, folder)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        assert ref.revision is not None
        return Served(ref.branch, ref.revision, digest, handle)

    def _tidy(self) -> None:
        """Unloads the retired that nobody uses, and then the oldest that nobody uses until the rest fits."""
        idle = [entry for entry in self._entries.values() if entry.num_users == 0 and entry.loading.done()]
        for entry in idle:  # the oldest first
            if entry.ref in self._retired or len(self._entries) > self._capacity:
                self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        if self._entries.get(entry.ref) is not entry:  # its load has failed, and perhaps another has begun
            return
        del self._entries[entry.ref]

        def note_end(task: asyncio.Task[None]) -> None:
            del self._leaving[entry.name]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s could not be unloaded: %s", entry.name, error)

        task = asyncio.create_task(self._unload(entry), name=f"unload {entry.name}")
        self._leaving[entry.name] = task
        task.add_done_callback(note_end)

    async def _unload(self, entry: _Entry) -> None:
        await asyncio.wait([entry.loading])
        if entry.loading.exception() is None:
            await self._loader.unload(entry.loading.result().handle)
            await asyncio.to_thread(shutil.rmtree, entry.folder)
