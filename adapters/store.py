"""The store: every published revision, on disk. The disk is the truth, and one process writes it.

    store.json                      which base it belongs to
    .id                             what the queue knows it by
    .lock                           held by the one writing process
    .staging/UUID/                  uploads on their way; emptied when the store is opened
    .rejected/BRANCH@REVISION.UUID  what was found damaged; looked at by people, emptied by nobody
    BRANCH/REVISION/                adapter_model.safetensors, adapter_config.json, manifest.json; may hold
        optimizer.safetensors       the optimiser's moments: of the two newest revisions and of phase ends
        retired                     a mark: the revision is gone, its manifest stays, its number is never used again

A revision comes into being by one rename of a staging folder whose files are all on the disk: the rename is the commit.
Opening hashes the adapter files of every kept revision; a folder that is not a whole revision is moved away and told,
and the branch's head is then the newest whole one.

All functions block: call them in threads. Branches are independent; two writes to one branch are the caller's to
order. Left out: who may publish what (`service.publishing.publisher`), and media.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.errors import UserError
from adapters.manifest import (
    MANIFEST,
    OPTIMISER,
    DamagedError,
    Manifest,
    read_manifest,
    verify,
    write_manifest,
)
from adapters.names import RESERVED, Ref, check_branch, is_name, is_revision

FORMAT = 1
RETIRED = "retired"
_KEPT_OPTIMISERS = 2
_ID = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)


class DiskFullError(UserError):
    """There is no room. What was being written is not there."""


@contextmanager
def disk_full_as_user_error(where: str) -> Generator[None]:
    """A full disk becomes one line; every other failure of a disk stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"the disk of {where} is full; free some room and try again") from None


# A child that is forked without exec would hold the lock on after our death, and nobody could open the store again.
_lock_descriptors: set[int] = set()


def _let_go() -> None:
    while _lock_descriptors:
        os.close(_lock_descriptors.pop())


os.register_at_fork(after_in_child=_let_go)


@dataclass(frozen=True, slots=True)
class StoredBranch:
    """A branch's revisions at one moment."""

    live: Mapping[int, Manifest] = field(default_factory=dict[int, Manifest])
    retired: Mapping[int, Manifest] = field(default_factory=dict[int, Manifest])

    @property
    def head(self) -> int:
        return max(self.live)

    def manifest(self, revision: int) -> Manifest | None:
        return self.live.get(revision) or self.retired.get(revision)


class Store:
    """An open store. `with Store(root, base) as store: ...`; a UserError where it cannot be opened."""

    def __init__(self, root: Path, base: str) -> None:
        self.root = root
        self.base = base
        self.rejected: list[str] = []
        """What opening found damaged, in words."""
        self._branches: dict[str, StoredBranch] = {}
        self._mutex = threading.Lock()
        _check_is_store(root)
        self._lock = _lock(root)
        try:
            _pin_base(root, base)
            self.id = _read_id(root)
            """Of this store alone, for ever."""
            for folder in (self._staging, self._rejected):
                folder.mkdir(exist_ok=True)
            for leftover in self._staging.iterdir():
                shutil.rmtree(leftover)
            self._scan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._lock in _lock_descriptors:
            _lock_descriptors.remove(self._lock)
            os.close(self._lock)

    @property
    def branches(self) -> Mapping[str, StoredBranch]:
        """Those with a head, as they are now."""
        with self._mutex:
            return {name: branch for name, branch in self._branches.items() if branch.live}

    def branch(self, name: str) -> StoredBranch:
        """An unknown one has no revisions."""
        return self._branches.get(name, StoredBranch())

    def folder(self, ref: Ref) -> Path:
        """Of a kept revision."""
        assert ref.revision in self.branch(ref.branch).live, f"{ref} is not in the store"
        return self.root / ref.branch / str(ref.revision)

    def stage(self) -> Path:
        """A new folder for an upload. Its owner removes it, unless `commit` has taken it."""
        folder = self._staging / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def commit(self, staged: Path, manifest: Manifest) -> None:
        """The staged folder becomes the revision. After an error before the rename nothing has changed."""
        check_branch(manifest.branch)
        branch = self.root / manifest.branch
        write_manifest(staged, manifest)
        for path in staged.iterdir():
            sync(path)
        sync(staged)
        if not branch.is_dir():
            branch.mkdir()
            sync(self.root)
        staged.rename(branch / str(manifest.revision))
        with self._mutex:
            before = self.branch(manifest.branch)
            self._branches[manifest.branch] = replace(before, live={**before.live, manifest.revision: manifest})
        sync(branch)
        self._drop_optimisers(manifest.branch)

    def start(self, branch: str) -> Manifest:
        """Revision 0 of a new branch: the base itself, B = 0, no files."""
        manifest = Manifest(
            branch=branch,
            revision=0,
            parent=None,
            base=self.base,
            digest=self.base,
            files={},
            created=datetime.now(UTC),
        )
        with self._staged() as folder:
            self.commit(folder, manifest)
        return manifest

    def fork(self, branch: str, origin: Ref) -> Manifest:
        """Revision 0 of a new branch: another's revision, by hard links.

        The optimiser's moments stay behind: whether the origin's are still kept must not change what the fork learns.
        """
        check_branch(branch)
        source = self.folder(origin)
        parent = read_manifest(source)
        manifest = Manifest(
            branch=branch,
            revision=0,
            parent=None,
            origin=str(origin),
            base=self.base,
            digest=parent.digest,
            files=parent.adapter_files,
            created=datetime.now(UTC),
        )
        with self._staged() as folder:
            for name in manifest.files:
                (folder / name).hardlink_to(source / name)
            self.commit(folder, manifest)
        return manifest

    def retire(self, ref: Ref) -> None:
        """Delete a kept revision's files, not its manifest. The mark comes first: opening ends what a crash cut off."""
        branch = self.branch(ref.branch)
        if ref.revision == branch.head:
            raise UserError(f"{ref} is the head of {ref.branch}; only older revisions can be retired")
        folder = self.folder(ref)
        (folder / RETIRED).touch()
        sync(folder)
        with self._mutex:
            before = self.branch(ref.branch)
            self._branches[ref.branch] = StoredBranch(
                live={number: manifest for number, manifest in before.live.items() if number != ref.revision},
                retired={**before.retired, **{n: manifest for n, manifest in before.live.items() if n == ref.revision}},
            )
        _delete_files(folder)

    @property
    def _staging(self) -> Path:
        return self.root / ".staging"

    @property
    def _rejected(self) -> Path:
        return self.root / ".rejected"

    @contextmanager
    def _staged(self) -> Generator[Path]:
        folder = self.stage()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _drop_optimisers(self, name: str) -> None:
        """They are two thirds of a revision, and only the newest are ever continued from."""
        kept = self.branch(name).live
        for revision in sorted(kept)[:-_KEPT_OPTIMISERS]:
            if not kept[revision].is_phase_end:
                (self.root / name / str(revision) / OPTIMISER).unlink(missing_ok=True)

    def _scan(self) -> None:
        """Adopt what is whole, move away what is not."""
        found = [ref for path in sorted(self.root.iterdir()) if _is_branch(path) for ref in _revisions(path)]
        with ThreadPoolExecutor() as pool:
            for ref, manifest in zip(found, pool.map(self._read, found), strict=True):
                if isinstance(manifest, str):
                    self._reject(ref, manifest)
                    continue
                branch = self.branch(ref.branch)
                folder = self.root / ref.branch / str(ref.revision)
                if (folder / RETIRED).exists():
                    _delete_files(folder)
                    branch = replace(branch, retired={**branch.retired, manifest.revision: manifest})
                else:
                    branch = replace(branch, live={**branch.live, manifest.revision: manifest})
                self._branches[ref.branch] = branch

    def _read(self, ref: Ref) -> Manifest | str:
        """The manifest of a whole revision, or what is wrong with it."""
        folder = self.root / ref.branch / str(ref.revision)
        if folder.is_symlink():
            return f"{ref}: a link; nothing outside the store is read"
        try:
            manifest = read_manifest(folder)
            if manifest.ref != ref:
                return f"{ref}: its manifest is that of {manifest.ref}"
            if manifest.base != self.base:
                return f"{ref}: its manifest names another base"
            if not (folder / RETIRED).exists():
                verify(folder, manifest.adapter_files)
        except DamagedError as error:
            return str(error)
        return manifest

    def _reject(self, ref: Ref, reason: str) -> None:
        target = self._rejected / f"{ref}.{uuid.uuid4().hex}"
        (self.root / ref.branch / str(ref.revision)).rename(target)
        self.rejected.append(f"{reason} (moved to {target})")
        log.warning("%s rejected: %s", ref, self.rejected[-1])


def _check_is_store(root: Path) -> None:
    """Before anything is touched: a home folder that is given by mistake must not be tidied up."""
    if root.is_dir() and not (root / "store.json").exists():
        others = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if others:
            raise UserError(f"{root}: holds {others[0]!r} and is no store; name an empty folder or a store")
    elif root.exists() and not root.is_dir():
        raise UserError(f"{root}: is no folder; name an empty folder or a store")


def _lock(root: Path) -> int:
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{root}: {error.strerror}; name a folder that can be written") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise UserError(f"{root}: another service (process {owner}) writes it; stop that one or take another") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _lock_descriptors.add(descriptor)
    return descriptor


def _pin_base(root: Path, base: str) -> None:
    path = root / "store.json"
    if not path.exists():
        _write_whole(path, json.dumps({"format": FORMAT, "base": base}) + "\n")
    try:
        pinned = json.loads(path.read_text())
        found, owner = pinned["format"], pinned["base"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; restore it, or name another store") from None
    if found != FORMAT:
        raise UserError(f"{root}: a store of format {found}, this is format {FORMAT}; take another store")
    if owner != base:
        raise UserError(f"{root}: belongs to the base {owner}, not to {base}; take that base or another store")


def _read_id(root: Path) -> str:
    path = root / ".id"
    if not path.exists():
        _write_whole(path, f"{uuid.uuid4().hex}\n")
    found = path.read_text(errors="replace").strip()
    if not _ID.fullmatch(found):
        raise UserError(f"{path}: damaged; restore it, or delete it and empty the queue's database")
    return found


def _write_whole(path: Path, text: str) -> None:
    """The file is there with all of the text, or it is not there."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    sync(draft)
    draft.rename(path)
    sync(path.parent)


def _is_branch(path: Path) -> bool:
    return is_name(path.name) and path.name not in RESERVED and path.is_dir() and not path.is_symlink()


def _revisions(branch: Path) -> Iterator[Ref]:
    """Everything called by a number, whatever it is: a file or a link is then rejected like a broken folder."""
    for path in branch.iterdir():
        if is_revision(path.name):
            yield Ref(branch.name, int(path.name))


def _delete_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (MANIFEST, RETIRED):
            path.unlink()


def sync(path: Path) -> None:
    """A file, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
