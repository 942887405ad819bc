"""Two branches, three workers, a store that loses revisions and a server that loses everything, in any order, beside a
model in Python."""

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from trainer.queue.client import ATTEMPTS, PERMANENT, Job, Lease, Queue, Refusal, lease_key
from trainer.queue.server import start

BRANCHES, WORKERS = ("image", "text"), ("w1", "w2", "w3")
STEPS = 2
branches, workers = st.sampled_from(BRANCHES), st.sampled_from(WORKERS)


@dataclass
class Branch:
    """What is stored, and what a queue should know of it."""

    head: int = 0
    token_on_disk: int = 0
    jobs: list[Job] = field(default_factory=list)
    newest: int = 0
    holder: str | None = None
    attempts: int = 0
    is_dead: bool = False

    def lose_all(self) -> None:
        self.jobs, self.newest, self.holder, self.attempts, self.is_dead = [], self.token_on_disk, None, 0, False

    def fall(self, newest: int) -> None:
        """Its newest revision was damaged. What was queued and held goes; who failed for good stays that."""
        self.head, self.jobs, self.newest, self.holder, self.attempts = self.head - 1, [], newest, None, 0

    def claim(self, worker: str) -> str:
        if not self.jobs:
            return "empty"
        if self.is_dead:
            return "dead"
        if self.holder not in (None, worker):
            return "held"
        self.attempts += 1
        if self.attempts > ATTEMPTS:
            self.is_dead, self.holder = True, None
            return "dead"
        self.holder = worker
        return "claimed"

    def renew(self, worker: str, token: int) -> bool:
        if token < self.newest:
            return False
        self.newest, self.holder = token, worker
        return True

    def release(self, token: int, error: str) -> str:
        if token != self.newest:
            return "lost"
        self.newest, self.holder = token + 1, None
        if not error:
            self.attempts = max(0, self.attempts - 1)
        elif (self.attempts or 1) >= ATTEMPTS:
            self.is_dead = True
        return "dead" if error and self.is_dead else "released"

    def publish(self, token: int) -> None:
        self.head, self.token_on_disk, self.newest = self.head + 1, token, max(self.newest, token)
        self.attempts, self.is_dead = int(self.holder is not None and self.attempts > 0), False
        while self.jobs and self.jobs[0].last <= self.head:
            self.jobs.pop(0)
            self.attempts = 0


class Machine(RuleBasedStateMachine):
    def __init__(self, queue: Queue, raw: redis.Redis) -> None:
        super().__init__()
        self.queue, self.raw = queue, raw
        raw.flushall()
        self.models = {name: Branch() for name in BRANCHES}
        self.held: dict[tuple[str, str], tuple[Lease, int]] = {}
        """A worker's last lease of a branch, and the head that its next step stands on."""
        self.given: set[tuple[str, int]] = set()
        self.heads = dict.fromkeys(BRANCHES, 0)
        self.reconcile()

    def reconcile(self) -> None:
        self.queue.reconcile("s", {name: (model.head, model.token_on_disk) for name, model in self.models.items()})

    @rule(branch=branches)
    def enqueue(self, branch: str) -> None:
        model = self.models[branch]
        first = model.jobs[-1].last if model.jobs else model.head
        job = Job(f"{branch}-{first}", "run", branch, "train", first, STEPS)
        assert self.queue.enqueue(job) == "enqueued"
        model.jobs.append(job)
        assert self.queue.enqueue(job) == "there"

    @rule(branch=branches, worker=workers)
    def claim(self, branch: str, worker: str) -> None:
        model = self.models[branch]
        expected, reply = model.claim(worker), self.queue.claim(branch, worker)
        if isinstance(reply, Refusal):
            assert reply.why == expected
            return
        assert expected == "claimed"
        assert reply.job == model.jobs[0]
        assert reply.token > model.newest
        assert (branch, reply.token) not in self.given
        self.given.add((branch, reply.token))
        model.newest = reply.token
        self.held[worker, branch] = reply, model.head

    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        leases = [lease for (name, _), (lease, _) in self.held.items() if name == worker]
        renewed = [lease for lease in leases if self.models[lease.branch].renew(worker, lease.token)]
        assert self.queue.renew(worker, leases) == renewed

    @rule(branch=branches, worker=workers, error=st.sampled_from(["", "broken"]))
    def release(self, branch: str, worker: str, error: str) -> None:
        if (worker, branch) in self.held:
            lease, _ = self.held[worker, branch]
            assert self.queue.release(lease, error) == self.models[branch].release(lease.token, error)

    @rule(branch=branches, worker=workers)
    def publish(self, branch: str, worker: str) -> None:
        """As the service does: the fence, then the parent, then the store, then the queue."""
        if (worker, branch) not in self.held:
            return
        (lease, parent), model = self.held[worker, branch], self.models[branch]
        is_current = self.queue.is_current(branch, lease.token)
        assert is_current == (lease.token >= model.newest)
        if is_current and parent == model.head:
            model.publish(lease.token)
            self.queue.advance(branch, model.head, lease.token)
            self.held[worker, branch] = lease, model.head

    @rule(branch=branches)
    def run_out(self, branch: str) -> None:
        self.raw.delete(lease_key(branch))
        self.models[branch].holder = None

    @rule(branch=branches)
    def retry(self, branch: str) -> None:
        model = self.models[branch]
        assert self.queue.retry(branch) == model.is_dead
        if model.is_dead:
            model.is_dead, model.attempts = False, 0

    @rule(branch=branches)
    def lose_a_revision(self, branch: str) -> None:
        if self.models[branch].head > 0:
            # Newer than every token that was given: whoever held the branch holds it no more.
            self.models[branch].fall(1 + max(token for name, token in self.given if name == branch))
            self.heads[branch] -= 1
            self.reconcile()

    @rule()
    def lose_all(self) -> None:
        self.raw.flushall()
        self.raw.script_flush()
        for model in self.models.values():
            model.lose_all()
        self.reconcile()

    @rule()
    def restart_the_service(self) -> None:
        self.reconcile()

    @invariant()
    def heads_go_back_with_the_store_alone(self) -> None:
        heads = self.queue.heads()
        assert heads == {name: model.head for name, model in self.models.items()}
        assert all(heads[name] >= self.heads[name] for name in BRANCHES)
        self.heads = heads

    @invariant()
    def the_newest_token_is_one_workers(self) -> None:
        for branch in BRANCHES:
            leases = [lease for (_, name), (lease, _) in self.held.items() if name == branch]
            assert sum(lease.token == self.models[branch].newest for lease in leases) <= 1

    @invariant()
    def jobs_wait_or_are_done(self) -> None:
        for name, waiting in self.queue.waiting(BRANCHES).items():
            model = self.models[name]
            assert list(waiting.jobs) == model.jobs
            assert all(job.last > model.head for job in waiting.jobs)
            assert waiting.worker == model.holder
            assert waiting.attempts == model.attempts
        assert {job.branch for job in self.queue.dead()} == {
            name for name, model in self.models.items() if model.is_dead
        }

    @invariant()
    def no_key_lives_for_ever(self) -> None:
        assert {key for key in self.raw.scan_iter() if self.raw.ttl(key) < 0} <= PERMANENT


@pytest.fixture(scope="module")
def clients() -> Generator[tuple[Queue, redis.Redis]]:
    with TemporaryDirectory() as folder, start(Path(folder)) as server:
        queue, raw = Queue(server.url), redis.Redis.from_url(server.url, decode_responses=True)
        yield queue, raw
        queue.close()
        raw.close()


def test_the_queue_does_what_the_model_does(clients: tuple[Queue, redis.Redis]) -> None:
    machine: Any = partial(Machine, *clients)
    checks: Any = list(HealthCheck)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=checks,
        ),
    )
