"""What a person sees of a run while it goes on: a table that keeps up, or plain lines where there is no terminal.

It reads the run's events and nothing else. Left out: the web page, and what a run ends with.
"""

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from rich.console import Console as Terminal
from rich.live import Live
from rich.table import Table

from trainer.plan import Step, is_there
from trainer.recipe import Recipe
from trainer.systems import plan

_SMOOTH = 20
"""Steps whose time makes the estimate."""


class Console:
    def __init__(self, recipe: Recipe, events: Path, url: str) -> None:
        made = plan(recipe)
        self._title = f"{recipe.name}: {url}"
        self._steps = {(step.branch, step.number): step for step in made.steps}
        self._ends = {start.branch: made.head(start.branch) for start in made.starts}
        self._newest: dict[str, Mapping[str, Any]] = {}
        self._notes: deque[str] = deque(maxlen=3)
        self._times: deque[float] = deque(maxlen=_SMOOTH)
        self._events, self._offset = events, 0
        self._terminal = Terminal()
        self._live = Live(console=self._terminal, auto_refresh=False) if self._terminal.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def look(self) -> None:
        """Shows what has happened since the last time."""
        for event in self._fresh():
            line = self._take(event)
            if line and not self._live:
                print(line, flush=True)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _fresh(self) -> Iterator[Mapping[str, Any]]:
        if not self._events.exists():
            return
        with self._events.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield json.loads(line)

    def _take(self, event: Mapping[str, Any]) -> str:
        """The event as a line; empty if it is of no interest."""
        match event["kind"]:
            case "step":
                self._newest[event["branch"]] = event
                self._times.append(time.monotonic())
                return f"{event['branch']}@{event['step']} of {self._ends.get(event['branch'])}: {_told(event)}"
            case "failed" | "dead" | "waiting":
                self._notes.append(f"{event['branch']}: {event.get('error') or event.get('text')}")
                return self._notes[-1]
            case _:
                return ""

    def _left_s(self) -> float | None:
        """Until the end, at the pace of the last steps."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return pace * sum(end - self._head(branch) for branch, end in self._ends.items())

    def _head(self, branch: str) -> int:
        return int(self._newest[branch]["step"]) if branch in self._newest else 0

    def _table(self) -> Table:
        left = self._left_s()
        table = Table(title=self._title, caption="\n".join(self._notes))
        for name in ("branch", "step", "phase", "reward", "length", "entropy", "next waits for"):
            table.add_column(name)
        for branch, end in self._ends.items():
            event = self._newest.get(branch)
            metrics = event["metrics"] if event else {}
            table.add_row(
                branch,
                f"{self._head(branch)} / {end}",
                event["phase"] if event else "",
                *(_number(metrics.get(f"native/{name}")) for name in ("reward", "length", "entropy")),
                ", ".join(self._missing(branch)),
            )
        table.add_row("", f"{left:.0f} s left" if left else "")
        return table

    def _missing(self, branch: str) -> list[str]:
        """Revisions that the branch's next step reads and that nobody has made."""
        step: Step | None = self._steps.get((branch, self._head(branch) + 1))
        refs = [teacher.ref for teacher in step.teachers] if step else []
        heads = {branch: self._head(branch) for branch in self._ends}
        return [str(ref) for ref in refs if not is_there(ref, heads)]


def _told(event: Mapping[str, Any]) -> str:
    metrics = event["metrics"]
    teachers = f" taught by {', '.join(event['teachers'])}" if event["teachers"] else ""
    seconds = sum(event["seconds"].values())
    words = [f"{name} {_number(metrics[f'native/{name}'])}" for name in ("reward", "length")
             if f"native/{name}" in metrics]  # fmt: skip
    skipped = f", skipped: {event['skipped']}" if event["skipped"] else ""
    return f"{', '.join(words) or event['phase']}{teachers}, {seconds:.1f} s{skipped}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
