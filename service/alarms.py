"""What a person should look at in a run, and what to do about it: of the newest step of each branch, and of its notes.

A service cannot see processes: what has died is told by the queue's events, what stands still by their silence.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from service.runs import RunInfo
from service.series import WARNING, Series

Level = Literal["error", "warning"]

DECIDED, CUT_OFF = 0.5, 0.25
"""Shares of groups without variance, and of completions that ended with their room, that deserve a look. A step warns
of higher ones, at which learning is nearly over."""
STALLED_STEPS, STALLED_S = 5, 120.0
"""A run stands still when it is silent for so many of its usual intervals, and for so long: an exam takes a while."""


@dataclass(frozen=True, slots=True)
class Alarm:
    level: Level
    where: str
    text: str
    remedy: str
    retry: str | None = None
    """The branch whose dead job may be tried again."""


def alarms(info: RunInfo, series: Series, now: datetime) -> list[Alarm]:
    """Errors first."""
    everything = [*_dead(series), *_stalled(info, now), *_overlaps(series), *_shares(series), *_warned(series)]
    return sorted(everything, key=lambda alarm: alarm.level != "error")


def _dead(series: Series) -> Iterator[Alarm]:
    """Branches whose newest note of a failure says that nobody tries again."""
    newest = {note.event.get("branch"): note.event for note in series.notes if note.event.get("kind") == "failed"}
    for branch, event in newest.items():
        if branch in series.branches and event.get("step", 0) <= series.head(branch):
            continue  # it was made after all
        where, error = f"{branch}@{event.get('step')}", str(event.get("error"))
        if event.get("dead"):
            remedy = f"mend that, then: coevo jobs retry {branch}"
            yield Alarm("error", where, f"failed for good: {error}", remedy, str(branch))
        else:
            yield Alarm("warning", where, f"failed: {error}", "it is tried again by itself")


def _stalled(info: RunInfo, now: datetime) -> Iterator[Alarm]:
    if info.state != "running" or info.num_events < 2:
        return
    # Over all events and not over steps alone: a run that only measures is not standing still.
    usual = (info.updated - info.started) / (info.num_events - 1)
    silent = now - info.updated
    if silent > max(STALLED_STEPS * usual, timedelta(seconds=STALLED_S)):
        minutes = silent.total_seconds() / 60
        remedy = "look at the logs of worker and coordinator; coevo status says who waits for what"
        yield Alarm("warning", info.id, f"nothing was told for {minutes:.0f} min", remedy)


def _overlaps(series: Series) -> Iterator[Alarm]:
    newest = next((note.event for note in reversed(series.notes) if note.event.get("kind") == "overlap"), {})
    for text in newest.get("alarms", []):
        where = f"{newest['phase']} {newest['step']}"
        yield Alarm("warning", where, text, "shorten method.rlvr_steps, or take method.rhythm = adaptive")


def _shares(series: Series) -> Iterator[Alarm]:
    limits = (
        ("decided", DECIDED, "of the groups have one reward for all completions", "take easier or harder prompts"),
        ("cut_off", CUT_OFF, "of the completions are cut off", "raise rollout.max_completion_tokens"),
    )
    for branch in series.branches:
        recent = series.recent(branch)
        for name, limit, text, remedy in limits:
            for key, values in recent.items():
                # The median of the last steps: a step has few prompts, and one bad draw is no news.
                if key.endswith(f"/{name}") and (share := statistics.median(values)) > limit:
                    yield Alarm("warning", f"{branch}, {key.partition('/')[0]}", f"{share:.0%} {text}", remedy)


def _warned(series: Series) -> Iterator[Alarm]:
    """What the newest warning of a branch says, unless the shares above say it already."""
    # Notes are in the order in which they were told: the last of a branch wins.
    newest = {note.event["branch"]: note.event for note in series.notes if note.event["kind"] == WARNING}
    for branch, event in newest.items():
        if event["step"] != series.head(branch):
            continue  # later steps did not warn
        for text in event["warnings"]:
            said, _, remedy = text.partition(": ")[2].rpartition(": ")
            if not any(f"/{name}:" in text for name in ("decided", "cut_off")):
                yield Alarm("warning", f"{branch}@{event['step']}", f"{text.partition(': ')[0]} {said}", remedy)
