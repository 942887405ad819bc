"""What a queue holds: jobs, who may work on them, and why somebody may not."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Job:
    """Steps `first` + 1 to `first` + `steps` of a branch."""

    id: str
    run: str
    branch: str
    kind: str
    first: int
    steps: int

    @property
    def last(self) -> int:
        return self.first + self.steps


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish the next revisions of a branch."""

    branch: str
    token: int
    nonce: str
    job: Job


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a branch cannot be worked on now."""

    why: Literal["empty", "held", "dead", "ahead"]
    """`ahead`: its jobs began behind its head, and are dropped; the coordinator enqueues those that are missing."""
    holder: str = ""
    left_s: float = 0.0
    """Until its lease runs out, if it is not renewed."""


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that failed `ATTEMPTS` times without a step. Its branch stands still until it is retried."""

    branch: str
    job: str
    error: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A branch's jobs, and who works on the first."""

    jobs: tuple[Job, ...]
    worker: str | None
    attempts: int
