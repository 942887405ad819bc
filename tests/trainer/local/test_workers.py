"""Which workers of a run on one machine are ended, by what a queue says of their branches."""

from pathlib import Path

import pytest

from adapters.errors import UserError
from trainer.local.workers import FROZEN_S, FrozenWorkers, check_jobs, local_workers
from trainer.queue.client import DeadJob, Job, Waiting

JOBS = (Job("run:text:0", "run", "text", "rlvr", 0, 2),)
BRANCHES = ("text", "image")


def waiting(text: str | None, image: str | None, jobs: tuple[Job, ...] = JOBS) -> dict[str, Waiting]:
    """Who has a lease on either branch."""
    return {"text": Waiting(jobs, text, 0), "image": Waiting(jobs, image, 0)}


def test_a_worker_with_work_and_no_lease_is_frozen_after_a_while() -> None:
    (worker,) = local_workers("out", BRANCHES, each=False)
    now = [0.0]
    frozen = FrozenWorkers([worker], clock=lambda: now[0])
    said = []
    for seconds, state in (
        (0, waiting(None, None)),
        (FROZEN_S, waiting(None, None)),
        (1, waiting(None, worker.name)),  # one lease says that it lives
        (FROZEN_S, waiting(None, None)),
        (1, waiting(None, None, jobs=())),  # nor is it frozen where there is nothing to do
        (FROZEN_S, waiting("somebody-else", None)),
        (FROZEN_S + 1, waiting("somebody-else", None)),
        (1, waiting(None, None)),  # just ended: its next life has all the time
    ):
        now[0] += seconds
        said.append([ended.process for ended in frozen.look(state)])
    assert said == [[], [], [], [], [], [], ["worker-all"], []]


def test_of_workers_for_each_branch_the_one_without_its_lease_is_meant() -> None:
    workers = local_workers("out", BRANCHES, each=True)
    now = [0.0]
    frozen = FrozenWorkers(workers, clock=lambda: now[0])
    assert not list(frozen.look(waiting("out-text", None)))
    now[0] = FROZEN_S + 1
    assert [worker.name for worker in frozen.look(waiting("out-text", None))] == ["out-image"]


def test_a_job_that_failed_for_good_names_the_log_of_its_worker() -> None:
    dead = [DeadJob("image", "run:image:0", "no room")]
    for each, log in ((False, "worker-all"), (True, "worker-image")):
        with pytest.raises(UserError, match=rf"run:image:0 failed for good: no room \(logs/{log}\.log\)"):
            check_jobs(dead, local_workers("out", BRANCHES, each=each), Path("logs"))
    check_jobs([DeadJob("another-runs", "x", "y")], local_workers("out", BRANCHES, each=True), Path("logs"))
