"""How far long work is, and how long it will take: a bar on a terminal, elsewhere a plain line every so often.

It goes to stderr: what a command is asked for goes to stdout, which may be a file. Left out: a run's steps (`console`).
"""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

EVERY_S = 30.0
"""Between plain lines: a log of hours stays short, and a person who looks at it sees that it goes on."""


class Progress:
    """Work of one kind; a block shows it. `show` may be called from any thread."""

    def __init__(self, work: str, unit: str, *, every_s: float = EVERY_S) -> None:
        self._work, self._unit, self._every_s = work, unit, every_s
        self._began: tuple[int, float] | None = None
        """What was done when it was shown first: work that goes on has some behind it, which says nothing of a pace."""
        self._said_at = time.monotonic()
        terminal = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Bars(*columns, console=terminal, transient=True) if terminal.is_terminal else None
        self._bar = self._bars.add_task(work, total=None) if self._bars else None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, done: int, total: int) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.update(self._bar, completed=done, total=total)
            return
        now = time.monotonic()
        first, began = self._began = self._began or (done, now)
        if now - self._said_at >= self._every_s and done > first:
            self._said_at = now
            left = duration((now - began) / (done - first) * (total - done))
            print(f"{self._work}: {done:,} of {total:,} {self._unit}, {left} left", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
