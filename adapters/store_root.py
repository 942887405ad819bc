"""The folder of a store: whether it is one, who writes it, which base it belongs to, and by what the queue knows it."""

import fcntl
import json
import os
import re
import uuid
from pathlib import Path

from adapters.errors import UserError

FORMAT = 1
"""The layout of folders that `store` describes. A store of another format is not opened, so that nothing mixes two."""
_ID = re.compile(r"[0-9a-f]{32}")


# A child that is forked without exec would hold the lock on after our death, and nobody could open the store again.
_descriptors: set[int] = set()


def _close_locks() -> None:
    while _descriptors:
        os.close(_descriptors.pop())


os.register_at_fork(after_in_child=_close_locks)


def check_is_store(root: Path) -> None:
    if root.is_dir() and not (root / "store.json").exists():
        names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        if names:
            raise UserError(f"{root}: holds {names[0]!r} and is no store; name an empty folder or a store")
    elif root.exists() and not root.is_dir():
        raise UserError(f"{root}: is no folder; name an empty folder or a store")


def lock(root: Path) -> int:
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
    # The owner's process id, for the message above. Only the lock decides: it ends with its process, the file stays.
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _descriptors.add(descriptor)
    return descriptor


def unlock(descriptor: int) -> None:
    """Doing it twice is doing it once."""
    if descriptor in _descriptors:
        _descriptors.remove(descriptor)
        os.close(descriptor)


def identify(root: Path, base: str) -> str:
    """The store's id, after a look whether it belongs to the base. A new store is given both."""
    path = root / "store.json"
    if not path.exists():
        _write_whole(path, json.dumps({"format": FORMAT, "base": base}) + "\n")
    try:
        pinned = json.loads(path.read_text())
        format, owner = pinned["format"], pinned["base"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; restore it, or name another store") from None
    if format != FORMAT:
        raise UserError(f"{root}: a store of format {format}, this is format {FORMAT}; take another store")
    if owner != base:
        raise UserError(f"{root}: belongs to the base {owner}, not to {base}; take that base or another store")
    path = root / ".id"
    if not path.exists():
        _write_whole(path, f"{uuid.uuid4().hex}\n")
    id = path.read_text(errors="replace").strip()
    if not _ID.fullmatch(id):
        # No new one in silence: to the queue it would be another store, and it serves only one.
        raise UserError(f"{path}: damaged; restore it, or delete it and empty the queue's database")
    return id


def _write_whole(path: Path, text: str) -> None:
    """The file is there with all of the text, or it is not there."""
    # Content first, then the name, then the folder that holds the name: in this order nothing half can survive a crash.
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    sync(draft)
    draft.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk and survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
