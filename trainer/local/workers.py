"""The workers of a run on one machine: what they have failed at for good, and which of them stand still.

A process that is stopped, swapped out, or held by a library that lets no thread run, renews no lease and watches no
step of its own. Nobody else is there to take its branches, so it is ended, and started again like any that died.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import UserError
from trainer.queue.client import LEASE_S, DeadJob, Waiting

FROZEN_S = 10 * LEASE_S
"""Without a lease, though there is work. A worker that lives claims within seconds; a machine that slept for a while
has the time to wake up."""


@dataclass(frozen=True, slots=True)
class LocalWorker:
    process: str
    name: str
    """In the queue. The same each time: a worker that is started again takes its own leases back at once."""
    word: str
    """What its command line calls its branches."""
    branches: Sequence[str]


def local_workers(run: str, branches: Sequence[str], *, each: bool) -> list[LocalWorker]:
    """One for all branches, or one for each."""
    served = {branch: [branch] for branch in branches} if each else {"all": branches}
    return [LocalWorker(f"worker-{word}", f"{run}-{word}", word, of_it) for word, of_it in served.items()]


def check_jobs(dead: Sequence[DeadJob], workers: Sequence[LocalWorker], logs: Path) -> None:
    """A UserError for a job that failed for good: nobody may be there to mend and retry it, so it ends the run."""
    for job in dead:
        for worker in workers:
            if job.branch in worker.branches:
                log = logs / f"{worker.process}.log"
                raise UserError(f"{job.job} failed for good: {job.error} ({log}); mend that, then add --resume")


class FrozenWorkers:
    def __init__(self, workers: Sequence[LocalWorker], clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._clock = workers, clock
        self._idle_since: dict[str, float] = {}

    def look(self, waiting: Mapping[str, Waiting]) -> Iterator[LocalWorker]:
        """Those that have had work for long, and no lease. Each then has all the time again."""
        for worker in self._workers:
            with_jobs = [waiting[branch] for branch in worker.branches if waiting[branch].jobs]
            if not with_jobs or any(branch.worker == worker.name for branch in with_jobs):
                self._idle_since.pop(worker.name, None)
            elif self._clock() - self._idle_since.setdefault(worker.name, self._clock()) > FROZEN_S:
                del self._idle_since[worker.name]
                yield worker
