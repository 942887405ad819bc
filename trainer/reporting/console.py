"""What a person sees of a run while it goes on: a table that keeps up, or plain lines where there is no terminal.

It reads the run's events and nothing else; so a run that goes on after an interruption is shown with what was before,
of which no line is printed again. Left out: what a run ends with (`tables`, `curves`).
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rich.console import Console as Terminal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.palette import colours
from trainer.plan.make import make_plan
from trainer.plan.steps import missing_teachers
from trainer.recipe import Recipe
from trainer.reporting.events import Event, overlap_lines
from trainer.reporting.percent import percent
from trainer.reporting.progress import EVERY_S, duration

_SMOOTH = 20
"""Steps whose time makes the estimate. Of late only: those of the second phase take longer than those of the first."""

_BAR = 30
"""Characters of the bar: with its words it fits a terminal of 80 columns."""


class Console:
    def __init__(self, recipe: Recipe, events: Path, url: str) -> None:
        plan = make_plan(recipe)
        self._title = f"{recipe.name}: {url}"
        self._steps = {(step.branch, step.number): step for step in plan.steps}
        self._ends = {start.branch: plan.head(start.branch) for start in plan.starts}
        self._newest: dict[str, Event] = {}
        self._notes: deque[str] = deque(maxlen=3)
        self._times: deque[float] = deque(maxlen=_SMOOTH)
        self._tokens: deque[float] = deque(maxlen=_SMOOTH)
        self._overlap = ""
        self._unrewarded: dict[str, str] = {}
        """What was told of branches that have earned nothing yet."""
        self._said_at = time.monotonic()
        self._recipe = recipe
        self._events, self._offset = events, 0  # bytes of the file that were read
        self._terminal = Terminal()
        self._live = Live(console=self._terminal, auto_refresh=False) if self._terminal.is_terminal else None

    def __enter__(self) -> Self:
        for event in self._fresh():
            self._take(event)
        # Of what was before, only the state counts: its steps were not made in the moment in which they were read.
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
            self._live.update(self.table(), refresh=True)
        elif time.monotonic() - self._said_at >= EVERY_S and self._times:
            self._said_at = time.monotonic()
            print(self._progress(), flush=True)

    def _progress(self) -> str:
        """How many steps are made, and how long the others will take."""
        done, total = sum(self.heads().values()), sum(self._ends.values())
        text = f"{done} of {total} steps"
        # One time says nothing of a pace, and several can be equal: events that were read at once.
        if len(self._times) > 1 and (elapsed_s := self._times[-1] - self._times[0]) > 0:
            # n times have n - 1 steps between them.
            text += f", {duration(elapsed_s / (len(self._times) - 1) * (total - done))} left"
        return text

    def _fresh(self) -> Iterator[Event]:
        if not self._events.exists():
            return
        with self._events.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is still being written: again at the next look
                    break
                self._offset += len(line)
                yield json.loads(line)

    def _take(self, event: Event) -> str:
        """The event as a line; empty if it is of no interest."""
        match event["kind"]:
            case "step":
                before = self._newest.get(event["branch"], event)
                if _reward(event) > _reward(before):
                    self._unrewarded.pop(event["branch"], None)
                self._newest[event["branch"]] = event
                self._times.append(time.monotonic())
                self._tokens.append(self._sampled(event))
                return f"{event['branch']}@{event['step']} of {self._ends.get(event['branch'])}: {_step_line(event)}"
            case "unrewarded":
                self._unrewarded[event["branch"]] = event["text"]
                return event["text"]
            case "failed" | "dead" | "waiting" | "fell":
                self._notes.append(f"{event['branch']}: {event.get('error') or event.get('text')}")
                return self._notes[-1]
            case "tracker":
                self._notes.append(event["text"])
                return self._notes[-1]
            case "rollouts":
                self._notes.append(f"rollouts of {event['branch']}@{event['step']}: {event['error']}")
                return self._notes[-1]
            case "overlap":
                self._overlap = next(overlap_lines([event]), "")
                return f"{event['phase']} {event['step']}: {self._overlap}"
            case "accuracy":
                rows = [row for row in event["rows"] if row["exam"] == "mean"] or event["rows"]
                cells = (f"{row['model']} {row['way']} {percent(row['accuracy'])} %" for row in rows)
                return f"accuracy: {', '.join(cells)}"
            case "rhythm":
                self._notes.append(
                    f"cycle {event['cycle'] + 1}: {event['rlvr_steps']} RLVR steps, {event['opd_steps']} of OPD"
                )
                return self._notes[-1]
            case _:
                return ""

    def _sampled(self, event: Event) -> float:
        """The tokens of a step's rollouts: of each term the mean length times its completions."""
        amounts = self._recipe.rollout
        native_count, (prompts, group_size) = amounts.prompts * amounts.group_size, amounts.opd_batch
        return sum(
            value * (native_count if name == "native/length" else prompts * group_size)
            for name, value in event["metrics"].items()
            if name.endswith("/length")
        )

    def heads(self) -> dict[str, int]:
        """How many steps of each branch are made."""
        return {branch: int(self._newest[branch]["step"]) if branch in self._newest else 0 for branch in self._ends}

    def table(self) -> Table:
        heads = self.heads()
        # As text, not as rich's markup: what a model wrote may be in it.
        caption = Text("\n".join(self._caption(heads)), style="table.caption")
        table = Table(title=self._title, caption=caption)
        for name in ("branch", "step", "phase", "reward", "length", "entropy", "next waits for"):
            table.add_column(name)
        by_branch = colours(self._ends)
        for branch, end in self._ends.items():
            event = self._newest.get(branch)
            metrics = event["metrics"] if event else {}
            step = self._steps.get((branch, heads[branch] + 1))  # none after the last
            table.add_row(
                Text(branch, style=by_branch[branch]),  # as on the page and in the pictures
                f"{heads[branch]} / {end}",
                event["phase"] if event else "",
                *(_number(metrics.get(f"native/{name}")) for name in ("reward", "length", "entropy")),
                ", ".join(map(str, missing_teachers(step, heads))) if step else "",
            )
        return table

    def _caption(self, heads: dict[str, int]) -> Iterator[str]:
        method = self._recipe.method
        full = _BAR * sum(heads.values()) // max(1, sum(self._ends.values()))
        yield f"{'━' * full}{'╌' * (_BAR - full)} {self._progress()}"
        if method.cyclic:
            cycle = min(heads.values(), default=0) // (method.rlvr_steps + method.opd_steps) + 1
            yield f"cycle {min(cycle, method.cycles)} of {method.cycles}"
        if len(self._times) > 1 and (elapsed_s := self._times[-1] - self._times[0]) > 0:
            # The first step's tokens were sampled before the first time.
            yield f"{sum(list(self._tokens)[1:]) / elapsed_s:,.0f} sampled tokens a second"
        if self._overlap:
            yield self._overlap
        yield from self._notes
        yield from self._unrewarded.values()


def _reward(event: Event) -> float:
    return event["metrics"].get("native/reward") or 0.0


def _step_line(event: Event) -> str:
    metrics = event["metrics"]
    words = [
        f"{name} {_number(metrics[f'native/{name}'])}" for name in ("reward", "length") if f"native/{name}" in metrics
    ]
    teachers = f" taught by {', '.join(event['teachers'])}" if event["teachers"] else ""
    skipped = f", skipped: {event['skipped']}" if event["skipped"] else ""
    # A student that only listens has no reward of its own to show.
    return f"{', '.join(words) or event['phase']}{teachers}, {sum(event['seconds'].values()):.1f} s{skipped}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
