"""What a person sees of a run while it goes on: a table that keeps up, or plain lines where there is no terminal.

It reads the run's events and nothing else; so an interrupted run that goes on is shown with what was before, of which
no line is told again. Left out: what a run ends with.
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

from trainer.plan.make import make_plan
from trainer.plan.steps import Step, is_there
from trainer.recipe import Recipe
from trainer.reporting.events import overlap_lines

_SMOOTH = 20
"""Steps whose time makes the estimate."""


class Console:
    def __init__(self, recipe: Recipe, events: Path, url: str) -> None:
        made = make_plan(recipe)
        self._title = f"{recipe.name}: {url}"
        self._steps = {(step.branch, step.number): step for step in made.steps}
        self._ends = {start.branch: made.head(start.branch) for start in made.starts}
        self._newest: dict[str, Mapping[str, Any]] = {}
        self._notes: deque[str] = deque(maxlen=3)
        self._times: deque[float] = deque(maxlen=_SMOOTH)
        self._tokens: deque[float] = deque(maxlen=_SMOOTH)
        self._overlap = ""
        self._recipe = recipe
        self._events, self._offset = events, 0
        self._terminal = Terminal()
        self._live = Live(console=self._terminal, auto_refresh=False) if self._terminal.is_terminal else None

    def __enter__(self) -> Self:
        for event in self._fresh():
            self._take(event)
        for recent in (self._notes, self._times, self._tokens):
            recent.clear()
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
                self._tokens.append(self._sampled(event))
                return f"{event['branch']}@{event['step']} of {self._ends.get(event['branch'])}: {_told(event)}"
            case "failed" | "dead" | "waiting":
                self._notes.append(f"{event['branch']}: {event.get('error') or event.get('text')}")
                return self._notes[-1]
            case "overlap":
                self._overlap = next(overlap_lines([event]), "")
                return f"{event['phase']} {event['step']}: {self._overlap}"
            case "accuracy":
                rows = [row for row in event["rows"] if row["exam"] == "mean"] or event["rows"]
                told = (f"{row['model']} {row['way']} {100 * row['accuracy']:.1f} %" for row in rows)
                return f"accuracy: {', '.join(told)}"
            case "rhythm":
                self._notes.append(
                    f"cycle {event['cycle'] + 1}: {event['rlvr_steps']} RLVR steps, {event['opd_steps']} of OPD"
                )
                return self._notes[-1]
            case _:
                return ""

    def _sampled(self, event: Mapping[str, Any]) -> float:
        """Tokens that a step's rollouts have."""
        amounts, metrics = self._recipe.rollout, event["metrics"]
        own = amounts.prompts * amounts.group_size
        prompts, group_size = amounts.opd_batch
        return sum(
            value * (own if name == "native/length" else prompts * group_size)
            for name, value in metrics.items()
            if name.endswith("/length")
        )

    def _pace(self) -> tuple[float, float] | None:
        """Seconds a step, and sampled tokens a second, of late."""
        if len(self._times) < 2 or self._times[-1] == self._times[0]:
            return None
        seconds = self._times[-1] - self._times[0]
        return seconds / (len(self._times) - 1), sum(list(self._tokens)[1:]) / seconds

    def _left_s(self) -> float | None:
        """Until the end, at the pace of the last steps."""
        pace = self._pace()
        return None if pace is None else pace[0] * sum(end - self._head(branch) for branch, end in self._ends.items())

    def _head(self, branch: str) -> int:
        return int(self._newest[branch]["step"]) if branch in self._newest else 0

    def _table(self) -> Table:
        table = Table(title=self._title, caption="\n".join(self._below()))
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
        return table

    def _below(self) -> Iterator[str]:
        left, pace = self._left_s(), self._pace()
        length = self._recipe.method.rlvr_steps + self._recipe.method.opd_steps
        if self._recipe.method.cyclic:
            slowest = min(map(self._head, self._ends), default=0)
            yield f"cycle {min(slowest // length + 1, self._recipe.method.cycles)} of {self._recipe.method.cycles}"
        if left is not None and pace is not None:
            yield f"{pace[1]:,.0f} sampled tokens a second; {_duration(left)} to the last step"
        if self._overlap:
            yield self._overlap
        yield from self._notes

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


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
