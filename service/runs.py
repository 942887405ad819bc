"""What runs tell: their events as the queue had them, a summary of each run, and every step's rollouts.

    RUN/events.jsonl                 an event a line, with the queue's name for it (`id`) and when it was written (`at`)
    RUN/rollouts/BRANCH/STEP.safetensors     a step's record, see `rollouts`

Events come out of the queue once each: a batch is on the disk before the queue forgets it, and what a crash leaves in
both places is known by its name. Line numbers never change, so whoever follows a run goes on after the last he has
seen. Summaries are made of the files again at each start.

Functions that touch the disk block: call them in threads. One thread drains.
"""

import asyncio
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from adapters.names import shown
from adapters.store import disk_full_as_user_error
from adapters.store_root import sync
from service.schemas import RunInfo
from service.summaries import Position, Summary, summed, unread

EVENTS, ROLLOUTS, RECORD = "events.jsonl", "rollouts", ".safetensors"
MOST_AT_ONCE = 1000  # events taken from the queue, and then written with one fsync
RUN_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"

_RUN = re.compile(RUN_PATTERN.strip("^$"))
_READ_BYTES = 2**20  # of events in one piece of an answer: a follower from the beginning gets a long run in pieces
_PART = ".part"

log = logging.getLogger(__name__)


class EventQueue(Protocol):
    """Where events come from."""

    def events(self, most: int = MOST_AT_ONCE) -> list[tuple[str, dict[str, Any]]]: ...

    def forget(self, names: Sequence[str]) -> None: ...


class Runs:
    """The folder of all runs."""

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        """Read-only, nothing is mended: another process may be writing there."""
        self.is_closed = False
        self.news = asyncio.Event()
        """Set, and replaced by another, when there may be more to read."""
        self._folder = folder
        self._runs: dict[str, Summary] = {}
        if is_read_only:
            self.look()
            return
        for leftover in folder.glob(f".*{_PART}"):
            leftover.unlink()
        self._runs = {run: _load(run, self._events(run)) for run in self._names()}

    def look(self) -> bool:
        """Reads what another process has written since; whether there was anything."""
        before = self._runs
        self._runs = {run: _read(self._events(run), before.get(run, unread(run))) for run in self._names()}
        return self._runs != before

    def _names(self) -> list[str]:
        return sorted(path.parent.name for path in self._folder.glob(f"*/{EVENTS}") if is_run(path.parent.name))

    # ---- events ----

    def drain(self, queue: EventQueue) -> int:
        """Take the oldest events out of the queue, and tell how many. DiskFullError: they are still in it."""
        entries = queue.events(MOST_AT_ONCE)
        by_run: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        strangers: list[object] = []
        for name, event in entries:
            # Anybody who reaches the queue can put anything into it.
            run = cast(object, event.get("run")) if isinstance(event, dict) else None  # pyright: ignore[reportUnnecessaryIsInstance]
            if isinstance(run, str) and is_run(run):
                by_run.setdefault(run, []).append((name, event))
            else:
                strangers.append(event)
        with disk_full_as_user_error("the runs"):
            for run, events in by_run.items():
                self._append(run, events)
        if strangers:
            log.warning("%d events of no run are dropped, such as %s", len(strangers), shown(str(strangers[0])))
        if entries:
            queue.forget([name for name, _ in entries])  # last: a crash before it leaves them in both places
        return len(entries)

    def announce(self) -> None:
        """Wake those who follow a run. On the event loop."""
        self.news.set()
        self.news = asyncio.Event()  # the old one stays set: a follower may hold it and wait for it only in a moment

    def close(self) -> None:
        """Whoever follows a run is at its end. On the event loop."""
        self.is_closed = True
        self.announce()

    def infos(self) -> list[RunInfo]:
        """The run that was heard of last comes first."""
        return sorted((run.info for run in self._runs.copy().values()), key=lambda info: info.updated, reverse=True)

    def info(self, run: str) -> RunInfo | None:
        state = self._runs.get(run)
        return None if state is None else state.info

    def has_more(self, run: str, position: Position) -> bool:
        return position.number < self._runs[run].end.number

    def seek(self, run: str, number: int) -> Position:
        """After so many events; at the beginning, if there never were so many."""
        if number > self._runs[run].end.number:
            return Position()
        with self._events(run).open("rb") as file:
            return Position(number, sum(len(line) for line in islice(file, number)))

    def read(self, run: str, position: Position) -> tuple[list[str], Position]:
        """Some of the lines after `position`, and the position after them."""
        end = self._runs[run].end  # the drain may be writing lines behind it
        number, offset = position.number, position.offset
        lines: list[str] = []
        with self._events(run).open("rb") as file:
            file.seek(offset)
            while number < end.number and offset - position.offset < _READ_BYTES and (line := file.readline()):
                lines.append(line.decode().rstrip("\n"))
                number, offset = number + 1, offset + len(line)
        return lines, Position(number, offset)

    # ---- rollouts ----

    @contextmanager
    def receive_rollouts(self, run: str, branch: str, step: int) -> Generator[BinaryIO]:
        """A file for a step's record. What is in it at the block's end replaces what was there before."""
        path = self.rollouts(run, branch, step)
        part = self._folder / f".{uuid.uuid4().hex}{_PART}"  # not beside it: what is refused makes no run's folder
        with disk_full_as_user_error("the runs"):
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                path.parent.mkdir(parents=True, exist_ok=True)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    def rollouts(self, run: str, branch: str, step: int) -> Path:
        """The record of a step; there may be none."""
        return self._folder / run / ROLLOUTS / branch / f"{step}{RECORD}"

    def recorded_steps(self, run: str) -> dict[str, list[int]]:
        """The steps of each branch whose records are kept."""
        steps: dict[str, list[int]] = {}
        for path in (self._folder / run / ROLLOUTS).glob(f"*/[0-9]*{RECORD}"):
            steps.setdefault(path.parent.name, []).append(int(path.stem))
        return {branch: sorted(steps[branch]) for branch in sorted(steps)}

    def trim_rollouts(self, run: str, branch: str, step: int, keep: int) -> list[int]:
        """Keep so many records of the steps up to this one; those that went. Later ones may be of a run that goes on
        from an older revision: it replaces them by and by."""
        steps = [number for number in self.recorded_steps(run).get(branch, []) if number <= step]
        removed = steps[:-keep]
        for number in removed:
            self.rollouts(run, branch, number).unlink(missing_ok=True)
        return removed

    def _events(self, run: str) -> Path:
        return self._folder / run / EVENTS

    def _append(self, run: str, events: list[tuple[str, dict[str, Any]]]) -> None:
        """Those that are not in the file yet: a batch may come again, if the queue was not told to forget it."""
        path = self._events(run)
        state = self._runs.get(run)
        # Somebody may have moved the file away, or a write that failed could not be undone.
        if state is None or not path.exists() or path.stat().st_size != state.end.offset:
            state = _load(run, path)
        names = [name for name, _ in events]
        fresh = events[names.index(state.newest) + 1 :] if state.newest in names else events
        at = datetime.now(UTC).isoformat()
        lines: list[bytes] = []
        for name, event in fresh:
            members = {key: _finite(value) for key, value in event.items() if key not in ("id", "at")}
            text = json.dumps({"id": name, "at": at, **members}, allow_nan=False)  # in ASCII: nothing in it ends a line
            lines.append(f"{text}\n".encode())
        if lines:
            _write(path, b"".join(lines), state.end.offset)
        self._runs[run] = summed(state, lines)


def is_run(name: str) -> bool:
    return _RUN.fullmatch(name) is not None


def _finite(value: Any) -> Any:
    """Python writes NaN into JSON and reads it back; nobody else does."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_finite(item) for item in cast(list[Any], value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, data: bytes, size: int) -> None:
    """All of it or nothing at the end of the file, which has `size` bytes, and on the disk."""
    if size == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
    if size == 0:  # a new file's name, and that of its new folder, must outlive a power cut as the events do
        for folder in (path.parent, path.parent.parent):
            sync(folder)


def _load(run: str, path: Path) -> Summary:
    """The state that a run's file tells. What is behind its last whole line is cut off."""
    if not path.exists():
        return unread(run)
    state = _read(path, unread(run))
    with path.open("r+b") as file:
        file.truncate(state.end.offset)
        os.fsync(file.fileno())
    return state


def _read(path: Path, state: Summary) -> Summary:
    """The state after all whole lines of the file."""
    with path.open("rb") as file:
        file.seek(state.end.offset)
        return summed(state, takewhile(lambda line: line.endswith(b"\n"), file))
