"""The store: every published revision, on disk. The disk is the truth, and one process writes it.

    store.json                      which base it belongs to
    .id                             what the queue knows it by
    .lock                           held by the one writing process
    .staging/UUID/                  uploads on their way; emptied when the store is opened
    .rejected/BRANCH@REVISION.UUID  damaged revisions; looked at by people, emptied by nobody
    BRANCH/REVISION/                adapter_model.safetensors, adapter_config.json, manifest.json; may hold
        optimizer.safetensors       the optimiser's moments: of the two newest revisions and of phase ends
        retired                     a mark: the revision is gone, its manifest stays, its number is never used again

A revision comes into being by one rename of a staging folder whose files are all on the disk: the rename is the commit.
Opening hashes the adapter files of every live revision; a folder that is not a whole revision is moved away and
reported, and the branch's head is then the newest whole one.

All functions block: call them in threads. Branches are independent; two writes to one branch are the caller's to
order. Left out: who may publish what (`service.publishing.publisher`), and media.
"""

import errno
import logging
import shutil
import threading
import uuid
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from adapters.errors import UserError
from adapters.manifest import MANIFEST, OPTIMISER, DamagedError, Manifest, read_manifest, verify, write_manifest
from adapters.names import RESERVED, Ref, check_branch, is_name, is_revision
from adapters.store_root import check_is_store, identify, lock, sync, unlock

RETIRED = "retired"
_KEPT_OPTIMISERS = 2
"""The newest revisions of a branch that keep the optimiser's moments. The next step continues from the head's."""


log = logging.getLogger(__name__)


class DiskFullError(UserError):
    """There is no room. What was being written is not there."""


@contextmanager
def disk_full_as_user_error(where: str) -> Generator[None]:
    """A full disk becomes one line; every other failure of a disk stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the disk is full, or the user's share of it
            raise
        raise DiskFullError(f"the disk of {where} is full; free some room and try again") from None


@dataclass(frozen=True, slots=True)
class StoredBranch:
    """A branch's revisions at one moment. It is replaced, never changed: readers in other threads need no lock."""

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
        """Why each damaged revision was moved away when the store was opened, one line for each."""
        self._staging, self._rejected = root / ".staging", root / ".rejected"
        self._branches: dict[str, StoredBranch] = {}
        self._mutex = threading.Lock()
        check_is_store(root)  # before anything is touched: a home folder given by mistake must not be tidied up
        self._lock = lock(root)
        try:
            self.id = identify(root, base)
            """The name that the queue knows it by, for ever; no other store has it."""
            for folder in (self._staging, self._rejected):
                folder.mkdir(exist_ok=True)
            for upload in self._staging.iterdir():  # of a process that died: we have the lock, so nobody is writing
                shutil.rmtree(upload)
            self._scan()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        unlock(self._lock)

    @property
    def branches(self) -> Mapping[str, StoredBranch]:
        """The branches with a head, as they are now."""
        with self._mutex:
            return {name: branch for name, branch in self._branches.items() if branch.live}

    def branch(self, name: str) -> StoredBranch:
        """An unknown one has no revisions."""
        return self._branches.get(name, StoredBranch())

    def folder(self, ref: Ref) -> Path:
        """The folder of a live revision."""
        assert ref.revision in self.branch(ref.branch).live, f"{ref} is not in the store"
        return self.root / ref.branch / str(ref.revision)

    def room(self) -> tuple[int, int]:
        """Bytes that are free on the store's disk, and those that the largest of the branches' heads takes."""
        sizes = [
            sum(file.bytes for file in branch.live[branch.head].files.values()) for branch in self.branches.values()
        ]
        return shutil.disk_usage(self.root).free, max(sizes, default=0)

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
        # All content is on the disk before the rename: a power cut leaves the whole revision, or none.
        for path in staged.iterdir():
            sync(path)
        sync(staged)
        if not branch.is_dir():
            branch.mkdir()
            sync(self.root)
        staged.rename(branch / str(manifest.revision))  # an error where the number exists: its folder is not empty
        with self._mutex:
            stored = self.branch(manifest.branch)
            live = {**stored.live, manifest.revision: manifest}
            self._branches[manifest.branch] = replace(stored, live=live)
        sync(branch)
        # Moments are two thirds of a revision, and only the newest are ever continued from.
        for revision in sorted(live)[:-_KEPT_OPTIMISERS]:
            if not live[revision].is_phase_end:
                (branch / str(revision) / OPTIMISER).unlink(missing_ok=True)

    def restore(self, staged: Path, manifest: Manifest) -> None:
        """The folder of a live revision from a staged one with the same adapter; what is left of it is moved away."""
        folder = self.folder(manifest.ref)
        for path in staged.iterdir():  # its moments may be others by now, and without them it is whole too
            if path.name not in manifest.adapter_files:
                path.unlink()
            else:
                sync(path)
        write_manifest(staged, manifest)
        sync(staged)
        if folder.exists():
            folder.rename(self._rejected / f"{manifest.ref}.{uuid.uuid4().hex}")
        folder.parent.mkdir(exist_ok=True)
        staged.rename(folder)
        sync(folder.parent)
        sync(self.root)

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

    def fork(self, branch: str, origin: Ref, *, moments: bool = False) -> Manifest:
        """Revision 0 of a new branch: another branch's revision, by hard links; with its optimiser's moments if said
        so."""
        check_branch(branch)
        source = self.folder(origin)
        parent = read_manifest(source)
        if moments and not (source / OPTIMISER).is_file():
            raise UserError(
                f"{origin} has no moments of an optimiser any more; fork a phase end, which keeps them, or go without "
                '(optimiser.on_fork = "warmup")'
            )
        manifest = Manifest(
            branch=branch,
            revision=0,
            parent=None,
            origin=str(origin),
            base=self.base,
            digest=parent.digest,
            # With all or with none of them: whether the origin's are still kept must not change what the fork learns.
            files=parent.files if moments else parent.adapter_files,
            created=datetime.now(UTC),
        )
        self._commit_links(source, manifest)
        return manifest

    def go_back(self, to: Ref) -> Manifest:
        """The next revision of a branch: an earlier one, by hard links. What was the head stays in the store."""
        source, head = self.folder(to), self.branch(to.branch).head
        earlier = read_manifest(source)
        manifest = Manifest(
            branch=to.branch,
            revision=head + 1,
            parent=head,
            origin=str(to),
            base=self.base,
            digest=earlier.digest,
            # With moments, if they are still there: the next step continues as it would have from the earlier one.
            files={name: entry for name, entry in earlier.files.items() if (source / name).is_file()},
            job=earlier.job,  # or a run would take the branch for somebody else's
            created=datetime.now(UTC),
        )
        self._commit_links(source, manifest)
        return manifest

    def _commit_links(self, source: Path, manifest: Manifest) -> None:
        with self._staged() as folder:
            # A link, not a copy: it costs nothing, and stays when the origin is retired.
            for name in manifest.files:
                (folder / name).hardlink_to(source / name)
            self.commit(folder, manifest)

    def retire(self, ref: Ref) -> None:
        """Delete a live revision's files, not its manifest. The mark comes first: opening ends what a crash cut off."""
        if ref.revision == self.branch(ref.branch).head:
            raise UserError(f"{ref} is the head of {ref.branch}; only older revisions can be retired")
        folder = self.folder(ref)
        assert ref.revision is not None
        (folder / RETIRED).touch()
        sync(folder)  # before the first file goes: without the mark the revision would be damaged, not retired
        with self._mutex:
            stored = self.branch(ref.branch)
            live = dict(stored.live)
            retired = {**stored.retired, ref.revision: live.pop(ref.revision)}
            self._branches[ref.branch] = StoredBranch(live, retired)
        _delete_files(folder)

    @contextmanager
    def _staged(self) -> Generator[Path]:
        folder = self.stage()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _scan(self) -> None:
        """Adopt what is whole, move away what is not."""
        # Whatever is called by a number counts as a revision: a file or a link is then rejected like a broken folder.
        refs = [
            Ref(branch.name, int(path.name))
            for branch in sorted(self.root.iterdir())
            if is_name(branch.name) and branch.name not in RESERVED and branch.is_dir() and not branch.is_symlink()
            for path in branch.iterdir()
            if is_revision(path.name)
        ]
        # In threads, as all the time goes into hashing, which lets go of the interpreter's lock.
        with ThreadPoolExecutor() as pool:
            for ref, manifest in zip(refs, pool.map(self._read, refs), strict=True):
                folder = self.root / ref.branch / str(ref.revision)
                branch = self.branch(ref.branch)
                if isinstance(manifest, str):
                    target = self._rejected / f"{ref}.{uuid.uuid4().hex}"
                    folder.rename(target)
                    self.rejected.append(f"{manifest} (moved to {target})")
                    log.warning("%s rejected: %s", ref, self.rejected[-1])
                elif (folder / RETIRED).exists():
                    _delete_files(folder)
                    retired = {**branch.retired, manifest.revision: manifest}
                    self._branches[ref.branch] = replace(branch, retired=retired)
                else:
                    self._branches[ref.branch] = replace(branch, live={**branch.live, manifest.revision: manifest})

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
            if not (folder / RETIRED).exists():  # of a retired one only the manifest is left
                verify(folder, manifest.adapter_files)
        except DamagedError as error:
            return str(error)
        return manifest


def _delete_files(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in (MANIFEST, RETIRED):
            path.unlink()
