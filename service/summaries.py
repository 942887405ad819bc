"""Summaries of runs: how far a run has come, of the events that it has told, a line each.

A long run has a hundred thousand events, and a service reads them all when it starts.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from adapters.names import shown
from service.schemas import RunBranch, RunInfo

REWARD = "native/reward"
"""The metric of a step that a run's summary shows."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """After so many lines, which are so many bytes."""

    number: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has told so far."""

    end: Position
    newest: str
    """The queue's name of the last event."""
    info: RunInfo


def unread(run: str) -> Summary:
    now = datetime.now(UTC)
    info = RunInfo(id=run, name="", state="running", branches={}, num_events=0, started=now, updated=now)
    return Summary(Position(), "", info)


class _Loose(BaseModel):
    """What is read of an event; the rest is for others, and trainers of other versions may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Event(_Loose):
    id: str
    at: AwareDatetime


class _RunEvent(_Event):
    kind: Literal["run"]
    state: str
    name: str = ""
    branches: dict[str, int] = {}


class _Metrics(_Loose):
    reward: float | None = Field(None, alias=REWARD)


class _StepEvent(_Event):
    kind: Literal["step"]
    branch: str
    step: int
    metrics: _Metrics = _Metrics.model_validate({})


class _NoteEvent(_Event):
    kind: Literal["unrewarded"]
    branch: str
    text: str


class _OtherEvent(_Event):
    kind: Any = None


# In the order of how often they come: the first that fits is taken. A long run has a hundred thousand, so each is read
# from its bytes at once, without what nobody here looks at.
_EVENT: TypeAdapter[_RunEvent | _StepEvent | _NoteEvent | _OtherEvent] = TypeAdapter(
    Annotated[_StepEvent | _RunEvent | _NoteEvent | _OtherEvent, Field(union_mode="left_to_right")]
)
_UNDERSTOOD = ("run", "step", "unrewarded")
_NEW_BRANCH = RunBranch(head=0)


def summed(before: Summary, lines: Iterable[bytes]) -> Summary:
    """The summary with more lines. One that says nothing is counted all the same."""
    number, offset, newest, info = before.end.number, before.end.offset, before.newest, before.info
    plan: dict[str, Any] = {}
    started, updated, branches = info.started, info.updated, dict(info.branches)
    for line in lines:
        number, offset = number + 1, offset + len(line)
        try:
            event = _EVENT.validate_json(line)
        except ValidationError as error:  # one bad event must not keep a service from starting
            log.warning("%s: event %d cannot be understood: %s", info.id, number, shown(str(error)))
            continue
        newest, updated, started = event.id, event.at, started if number > 1 else event.at
        match event:
            case _StepEvent():
                branch = branches.get(event.branch, _NEW_BRANCH)
                if event.step >= branch.head:  # an older one is told late, or again: a head never goes back
                    branches[event.branch] = _stepped(branch, event)
            case _RunEvent():
                plan = {"state": event.state, "name": event.name or plan.get("name", info.name)}
                # Heads and rewards stay: a run that goes on tells its plan again.
                for name, last in event.branches.items():
                    branches[name] = branches.get(name, _NEW_BRANCH).model_copy(update={"last": last})
            case _NoteEvent():
                branch = branches.get(event.branch, _NEW_BRANCH)
                branches[event.branch] = branch.model_copy(update={"notice": event.text})
            case _OtherEvent():
                if event.kind in _UNDERSTOOD:
                    log.warning("%s: event %d, %s, lacks what it should say", info.id, number, event.kind)
    update = {"num_events": number, "started": started, "updated": updated, "branches": branches, **plan}
    return Summary(Position(number, offset), newest, info.model_copy(update=update))


def _stepped(branch: RunBranch, event: _StepEvent) -> RunBranch:
    reward = event.metrics.reward
    # It was told of rewards that are all alike: a higher one says that this is over.
    notice = branch.notice if (reward or 0.0) <= (branch.reward or 0.0) else None
    return RunBranch(head=event.step, last=branch.last, reward=reward, notice=notice)
