"""Ends a worker whose step stands still though its heartbeat goes on: a lock, a dead rank, a read without an end.

A thread cannot be ended from outside, so the process is: the step costs its job an attempt, the other branches are
given back, and whoever supervises the worker starts it again. A process that does nothing at all, this thread
included, loses its leases instead.

What counts as progress: another phase of the step, an answer of the service, a pack of an update. Each of them has a
limit by the recipe or the client; the time that is waited for is above it.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from trainer.orchestration.endings import UNFORESEEN
from trainer.orchestration.heartbeat import Heartbeat
from trainer.plan.steps import Step
from trainer.queue.client import Queue, QueueAwayError
from trainer.recipe import Recipe

LOOK_S = 0.5
"""Between two looks: short beside every limit, and nothing beside a step."""
_GRACE_S = 120.0
"""For what has no limit of its own and is short: files, threads that wait for a core, a first compilation."""
_SLOWEST_TOKENS_PER_S = 5.0
"""Of an update. A billion parameters on a CPU learn faster. An update that hangs costs hours, and one that is taken for
hung costs all its attempts."""

Phase = Literal["rollouts", "update", "publishing"]

log = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class Patience:
    """The longest time without progress in each phase, in seconds."""

    rollouts: float
    update: float
    publishing: float

    @classmethod
    def in_all(cls, seconds: float) -> "Patience":
        return cls(seconds, seconds, seconds)

    @classmethod
    def of(cls, recipe: Recipe, engine_s: float, request_s: float) -> "Patience":
        """The patience that follows from the longest time of a call that the engine works for, and of any other."""
        judged_s = max(capability.reward.deadline_s for capability in recipe.capabilities.values())
        pack_s = recipe.budget.tokens_per_micro_batch / _SLOWEST_TOKENS_PER_S
        # An update begins with the download of its branch.
        return cls(engine_s + judged_s + _GRACE_S, request_s + pack_s + _GRACE_S, request_s + _GRACE_S)


@dataclass(frozen=True, slots=True)
class _Stand:
    step: int
    phase: Phase
    done: int
    """What the process had done in all, when this was seen."""
    since: float


class Watchdog(threading.Thread):
    """`done` counts the answers and packs of this process, whichever step they are of."""

    def __init__(
        self, queue: Queue, heartbeat: Heartbeat, run: str, worker: str, patience: Patience, done: Callable[[], int]
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._queue, self._heartbeat = queue, heartbeat
        self._run_id, self._worker = run, worker
        self._patience, self._done = patience, done
        self._lock = threading.Lock()
        self._stands: dict[str, _Stand] = {}
        self._ended = threading.Event()

    def begin(self, step: Step, phase: Phase) -> None:
        with self._lock:
            self._stands[step.branch] = _Stand(step.number, phase, self._done(), time.monotonic())

    def rest(self, branch: str) -> None:
        """The branch waits for others, or its step is over."""
        with self._lock:
            self._stands.pop(branch, None)

    def end(self) -> None:
        self._ended.set()

    def run(self) -> None:
        while not self._ended.wait(LOOK_S):
            done, now = self._done(), time.monotonic()
            with self._lock:
                for branch, stand in self._stands.items():
                    if stand.done != done:
                        self._stands[branch] = replace(stand, done=done, since=now)
                    elif now - stand.since > getattr(self._patience, stand.phase):
                        error = f"its {stand.phase} made no progress for {now - stand.since:.0f} s"
                        self._give_up(branch, stand.step, error)

    def _give_up(self, branch: str, step: int, error: str) -> None:
        log.error("%s@%d: %s; where every thread is:", branch, step, error)
        faulthandler.dump_traceback()
        leases = self._heartbeat.leases
        try:
            for lease in leases.values():
                self._heartbeat.drop(lease)  # before it is given back: it must not be renewed
                answer = self._queue.release(lease, error if lease.branch == branch else "")
                if lease.branch == branch:
                    event = {"branch": branch, "step": step, "error": error, "dead": answer == "dead"}
                    self._queue.tell(self._run_id, "failed", worker=self._worker, **event)
        except QueueAwayError as away:
            log.warning("%s; the leases run out by themselves", away)
        os._exit(UNFORESEEN)
