"""A run's events as columns, so that a page can ask for a slice of a long run and not for all of it.

A step of 16 branches and 5,000 steps is 80,000 lines of a kilobyte. Their numbers are kept as arrays of doubles, eight
bytes a number, and read from the file once, as it grows. What is no step is kept whole: there is little of it.

Functions that read the file block: call them in threads.
"""

import math
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

SECONDS = "seconds"
WAITING = f"{SECONDS}/waiting"
"""From the end of a branch's step to the beginning of its next: for a teacher, for the update's slot, for a worker."""
WARNING = "warning"
"""The kind of a note that a step's warnings make."""

Event = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Branch:
    """Steps of a branch in the order in which they were told; a step that is told again takes its own row."""

    rows: dict[int, int] = field(default_factory=dict[int, int])
    ends: "array[float]" = field(default_factory=lambda: array("d"))
    phases: list[str] = field(default_factory=list[str])
    columns: "dict[str, array[float]]" = field(default_factory=lambda: {})

    def add(self, step: int, end: float, phase: str, numbers: Mapping[str, float]) -> None:
        row = self.rows.setdefault(step, len(self.ends))
        if row == len(self.ends):  # a new step: every column grows by one, also those that it says nothing of
            self.ends.append(end)
            self.phases.append(phase)
            for column in self.columns.values():
                column.append(math.nan)
        self.ends[row], self.phases[row] = end, phase
        for name, value in numbers.items():
            if name not in self.columns:
                self.columns[name] = array("d", [math.nan]) * len(self.ends)
            self.columns[name][row] = value

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The steps in their order, and the row of each."""
        steps = np.fromiter(self.rows.keys(), np.int64, len(self.rows))
        rows = np.fromiter(self.rows.values(), np.int64, len(self.rows))
        order = np.argsort(steps)  # told late, or again after a restart: the order of the file is not that of the steps
        return steps[order], rows[order]

    def column(self, name: str, rows: NDArray[np.int64]) -> Floats:
        if name == WAITING:
            return self._waiting(rows)
        if name not in self.columns:
            return np.full(len(rows), np.nan)
        return np.array(self.columns[name], np.float64)[rows]  # a copy: a view would forbid the array to grow

    def busy(self, rows: NDArray[np.int64]) -> Floats:
        names = [name for name in self.columns if name.startswith(f"{SECONDS}/")]
        return np.nansum([self.column(name, rows) for name in names], axis=0) if names else np.zeros(len(rows))

    def _waiting(self, rows: NDArray[np.int64]) -> Floats:
        ends = np.array(self.ends, np.float64)[rows]
        begins = ends - self.busy(rows)
        # Never below 0: clocks of two machines, and steps whose sampling began while the one before was published.
        return np.maximum(begins - np.concatenate([begins[:1], ends[:-1]]), 0.0)


@dataclass(frozen=True, slots=True)
class Slice:
    """Some steps of a branch. Where there were more steps than points, a point is the mean of its steps."""

    steps: list[int]
    values: dict[str, list[float | None]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in which a branch worked on one phase, in seconds since the run's first event. Those shorter
    than a point are told with the one before them."""

    begin: float
    end: float
    phase: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Note:
    """An event that is no step, or a step's warnings."""

    number: int
    event: Event


class Series:
    """The file of one run, as far as it was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._offset = self._number = 0
        self._began: float | None = None
        self._branches: dict[str, _Branch] = {}
        self.notes: list[Note] = []

    def refresh(self) -> None:
        """Reads what the file has more."""
        with self._lock, self._path.open("rb") as file:
            # Two requests at a time would read the same lines, and count them twice: hence the lock.
            if self._path.stat().st_size < self._offset:  # another file has taken its place
                self._offset = self._number = 0
                self._branches, self.notes, self._began = {}, [], None
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is still being written
                    break
                self._offset += len(line)
                self._number += 1
                self._take(from_json(line))  # in half of the time that json takes

    def _take(self, event: Event) -> None:
        at = datetime.fromisoformat(event["at"]).timestamp()
        self._began = at if self._began is None else self._began
        if event.get("kind") != "step":
            self.notes.append(Note(self._number, event))
            return
        # Null is what JSON has for NaN: nobody was judged, for one.
        numbers = {name: math.nan if value is None else value for name, value in event.get("metrics", {}).items()}
        numbers |= {f"{SECONDS}/{name}": value for name, value in event.get("seconds", {}).items()}
        branch = self._branches.get(event["branch"]) or self._branches.setdefault(event["branch"], _Branch())
        branch.add(event["step"], at - self._began, event.get("phase", ""), numbers)
        # A step's warnings are read by people, so they lie with the notes and not in a column.
        if event.get("warnings"):
            shown = {name: event[name] for name in ("at", "branch", "step", "phase", "warnings") if name in event}
            self.notes.append(Note(self._number, {"kind": WARNING, **shown}))

    @property
    def branches(self) -> list[str]:
        return list(self._branches)

    def keys(self) -> list[str]:
        """Every metric that a step has told, and where its time went."""
        names = {name for branch in self._branches.values() for name in branch.columns}
        return sorted({*names, WAITING} if names else names)

    def head(self, branch: str) -> int:
        return max(self._branches[branch].rows)

    def recent(self, branch: str, count: int = 5) -> dict[str, list[float]]:
        """The metrics of the newest steps, those that have a number."""
        with self._lock:
            columns = self._branches[branch]
            rows = columns.sorted()[1][-count:]
            numbers = {
                name: [column[row] for row in rows if not math.isnan(column[row])]
                for name, column in columns.columns.items()
            }
        return {name: values for name, values in numbers.items() if values}

    def slice(self, branch: str, keys: Sequence[str], first: int, last: int, points: int) -> Slice:
        with self._lock:
            columns = self._branches[branch]
            steps, rows = columns.sorted()
            is_inside = (steps >= first) & (steps <= last)
            values = {key: columns.column(key, rows)[is_inside] for key in keys}
        steps = steps[is_inside]
        if len(steps) > points:
            # The last step of each bucket names the point: a click on it opens rollouts that are there.
            begins = np.linspace(0, len(steps), points, endpoint=False).astype(np.int64)
            values = {key: _means(numbers, begins) for key, numbers in values.items()}
            steps = steps[np.append(begins[1:], len(steps)) - 1]
        return Slice(steps.tolist(), {key: [_short(number) for number in numbers] for key, numbers in values.items()})

    def bars(self, branch: str, points: int) -> list[Bar]:
        """Stretches of one phase; those closer than a pixel of `points` are one."""
        with self._lock:
            columns = self._branches[branch]
            steps, rows = columns.sorted()
            ends, busy = np.array(columns.ends, np.float64)[rows], columns.busy(rows)
            phases = [columns.phases[row] for row in rows]
        begins = ends - busy
        pixel = ends.max(initial=0.0) / points  # waits shorter than that are not seen, and would be thousands of bars
        is_other = np.array([a != b for a, b in zip(phases[1:], phases[:-1], strict=True)], bool)
        is_first = np.concatenate([[True], is_other | (begins[1:] - ends[:-1] > pixel)])[: len(steps)]
        firsts = np.flatnonzero(is_first)
        # Of bars that begin within one pixel the first stands for all: else a long run had as many as it has phases.
        pixels = np.floor(begins[firsts] / pixel)
        firsts = firsts[np.append(True, pixels[1:] != pixels[:-1])[: len(firsts)]]
        lasts = np.append(firsts[1:], len(steps)) - 1
        return [
            Bar(round(float(begins[a]), 3), round(float(ends[b]), 3), phases[a], int(steps[a]), int(steps[b]))
            for a, b in zip(firsts, lasts, strict=True)
        ]

    def totals(self, branch: str) -> dict[str, float]:
        """Seconds by what they went into."""
        with self._lock:
            columns = self._branches[branch]
            _, rows = columns.sorted()
            names = [name for name in columns.columns if name.startswith(f"{SECONDS}/")]
            sums = {name: float(np.nansum(columns.column(name, rows))) for name in [*names, WAITING]}
        return {name.removeprefix(f"{SECONDS}/"): round(value, 3) for name, value in sums.items()}


def _means(numbers: Floats, begins: NDArray[np.int64]) -> Floats:
    """The mean of each bucket, without what is missing in it."""
    is_there = ~np.isnan(numbers)
    sums = np.add.reduceat(np.where(is_there, numbers, 0.0), begins)
    counts = np.add.reduceat(is_there.astype(np.float64), begins)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _short(number: float) -> float | None:
    """Six digits: more than a curve shows, at a third of the bytes."""
    return None if math.isnan(number) else float(f"{number:.6g}")
