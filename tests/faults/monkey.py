"""Random faults in a running cluster, from a seed: processes are killed, frozen, stopped, the queue is emptied, the
store is damaged, hostile adapters are sent.

Whatever ends is started again as a supervisor would, and jobs that failed for good are retried as a person would. At
any moment the queue must know of no revision that the store never had; what else must hold, `Cluster.check` says at the
end. Everything that was done is kept as a line of JSON.

The seed decides what is next and for how long; how far the run is by then is the machine's affair. Left out: faults at
named points (`service.faults`), and of the network (`namespaces`).
"""

import contextlib
import json
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.faults.cluster import Child, Cluster
from tests.faults.vandal import DAMAGE, HOSTILE, REFUSED, upload
from trainer.plan.make import make_plan
from trainer.queue.client import QueueAwayError
from trainer.recipe.file import load

FROZEN_S = (0.5, 7.0)
"""Shorter and longer than a lease."""
GONE_S = (0.2, 3.0)
EXPECTED = {0, 69, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
"""Exit status of what may end under faults: done or told to, service or queue away for too long, killed, told to before
it could hear or twice."""
COORDINATOR, SERVICE, QUEUE, STORE, UPLOAD = "coordinator", "service", "queue", "store", "upload"
WEIGHTS = {COORDINATOR: 2, SERVICE: 3, QUEUE: 4, STORE: 1, UPLOAD: 2}
WORKERS_WEIGHT = 7
_LOOK_S = 0.2


def quiet_port() -> int:
    """A free one below those that connections are given, so that nobody takes it while the service is gone."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class Monkey:
    """`workers` are the branches of each worker, by its name; `pause_s` is between two faults."""

    def __init__(
        self,
        cluster: Cluster,
        recipe: Path,
        workers: Mapping[str, Sequence[str]],
        *,
        seed: int,
        log: Path,
        pause_s: tuple[float, float] = (1.0, 6.0),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._cluster, self._log = cluster, log
        self._plan = make_plan(load(recipe))
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._began = time.monotonic()
        self._later: list[tuple[float, str, Callable[[], object]]] = []
        self._troubled: set[str] = set()
        """What has a fault under way: it gets no other."""
        self._threads = ThreadPoolExecutor(1)  # a service takes long to start
        self._starting: Future[None] | None = None
        self._start: dict[str, Callable[[], Child]] = {
            COORDINATOR: lambda: cluster.coordinator(recipe),
            **{
                name: lambda name=name, branches=branches: cluster.worker(*branches, name=name)
                for name, branches in workers.items()
            },
        }
        self._children = {name: start() for name, start in self._start.items()}
        self._told_to_end: set[str] = set()
        self._reached: dict[str, int] = {}
        """The newest revision that each branch ever had."""
        self.made_again: set[tuple[str, int]] = set()
        """Revisions that were damaged."""

    # ---- the two halves of a test ----

    def play(self, seconds: float) -> None:
        """Faults for so long from the first step, or until the run is over; then all that was frozen or is gone is
        back, or on its way."""
        self._cluster.wait_until(lambda: self.steps > 0)
        end = time.monotonic() + seconds
        next_at = time.monotonic() + self._random.uniform(*self._pause_s)
        while time.monotonic() < end and not self._is_finished():
            if time.monotonic() >= next_at:
                self._do_something()
                next_at = time.monotonic() + self._random.uniform(*self._pause_s)
            self._look_after()
            time.sleep(_LOOK_S)
        for _, target, repair in sorted(self._later, key=lambda entry: entry[0]):
            self._mend(target, repair)
        self._later = []

    def finish(self, timeout_s: float) -> None:
        """Without faults, until every process has come to the run's end."""
        self._cluster.wait_until(self._all_ended, timeout_s)
        for name, child in self._children.items():
            assert child.wait(0) == 0, f"{name}: {child.log[-3000:]}"
        self._threads.shutdown()

    @property
    def steps(self) -> int:
        """Steps of the plan that are in the store."""
        return sum(max(self._stored(start.branch), 0) for start in self._plan.starts)

    # ---- faults ----

    def _do_something(self) -> None:
        workers = [name for name in self._children if name != COORDINATOR]
        weights = WEIGHTS | {name: WORKERS_WEIGHT / len(workers) for name in workers}
        targets = [name for name in weights if name not in self._troubled]
        if not targets:
            return
        (target,) = self._random.choices(targets, [weights[name] for name in targets])
        if target == SERVICE:
            self._trouble_service()
        elif target == QUEUE:
            self._trouble_queue()
        elif target == STORE:
            self._trouble_store()
        elif target == UPLOAD:
            self._upload()
        else:
            self._trouble_child(target)

    def _trouble_child(self, name: str) -> None:
        child = self._children[name]
        if child.process.poll() is not None:
            return
        fault = self._random.choice(["kill", "freeze", "terminate"])
        if fault == "kill":
            child.kill()
            self._note(name, fault)
        elif fault == "freeze":
            child.signal(signal.SIGSTOP)
            self._mend_after(FROZEN_S, name, fault, lambda: child.signal(signal.SIGCONT))
        else:
            child.signal(signal.SIGTERM)
            self._told_to_end.add(name)
            self._note(name, fault)

    def _trouble_service(self) -> None:
        family = self._cluster.service.family
        engine = [process for process in family[2:] if process.name() == "VLLM::EngineCore"]
        if not engine:
            return  # it has just died
        fault = self._random.choice(["kill", "kill engine", "freeze", "restart", "kill all"])
        self._troubled.add(SERVICE)
        if fault == "freeze":
            process = self._random.choice([family[1], *engine])
            process.suspend()
            self._mend_after(FROZEN_S, SERVICE, fault, process.resume)
        elif fault == "restart":
            self._note(SERVICE, fault)
            self._starting = self._threads.submit(self._restart_service)
        else:
            victims = {"kill": family[1:2], "kill engine": engine, "kill all": family}[fault]
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):  # it went with the one before
                    process.kill()
            self._note(SERVICE, fault)

    def _restart_service(self) -> None:
        self._cluster.service.stop()
        self._cluster.service.start()

    def _trouble_queue(self) -> None:
        server = self._cluster.server
        fault = self._random.choice(["kill", "freeze", "restart", "empty"])
        if fault == "empty":
            server.empty()
            self._note(QUEUE, fault)
        elif fault == "freeze":
            server.freeze()
            self._mend_after(FROZEN_S, QUEUE, fault, server.thaw)
        else:
            server.kill() if fault == "kill" else server.stop()
            self._mend_after(GONE_S, QUEUE, fault, server.start)

    def _trouble_store(self) -> None:
        """Damages a head. The service finds it when it is started again, which is soon."""
        family = self._cluster.service.family
        if SERVICE in self._troubled or len(family) < 2:
            return
        family[1].suspend()  # what it was to publish now would hide the head
        self._see_heads()
        # One fall at a time: two in a row could end at a revision that was retired. A branch at its end has no worker.
        branches = [
            branch
            for branch, reached in self._reached.items()
            if 0 < self._stored(branch) == reached < self._plan.head(branch)
        ]
        if branches:
            branch, damage = self._random.choice(branches), self._random.choice(sorted(DAMAGE))
            head = self._stored(branch)
            DAMAGE[damage](self._cluster.store / branch / str(head))
            self.made_again.add((branch, head))
            self._note(STORE, damage)
        self._troubled.add(SERVICE)
        family[1].kill()

    def _upload(self) -> None:
        """As the next revision of the run's own branch, whose worker may be about to publish it."""
        (branch, head), kind = self._random.choice(sorted(self._reached.items())), self._random.choice(sorted(HOSTILE))
        source = self._cluster.store / branch / str(head)
        if head < 1 or SERVICE in self._troubled or not source.exists():
            return
        self._note(UPLOAD, kind)
        with contextlib.suppress(
            httpx.TransportError, FileNotFoundError
        ):  # the service went, or the source was damaged
            response = upload(self._cluster.service.url, kind, source, branch, head + 1)
            assert response.status_code in REFUSED | {429, 503}, f"{kind}: {response.status_code} {response.text}"

    def _see_heads(self) -> None:
        for start in self._plan.starts:
            self._reached[start.branch] = max(self._reached.get(start.branch, -1), self._stored(start.branch))

    def _note(self, target: str, fault: str, for_s: float | None = None) -> None:
        kind = target if target in WEIGHTS else "worker"
        self.counts[f"{kind}: {fault}"] += 1
        line = {"at": round(time.monotonic() - self._began, 1), "target": target, "what": fault}
        if for_s is not None:
            line["for_s"] = round(for_s, 1)
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _mend_after(self, span_s: tuple[float, float], target: str, fault: str, repair: Callable[[], object]) -> None:
        for_s = self._random.uniform(*span_s)
        self._note(target, fault, for_s)
        self._troubled.add(target)
        self._later.append((time.monotonic() + for_s, target, repair))

    def _mend(self, target: str, repair: Callable[[], object]) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # whoever watches it ended it while it was frozen
            repair()
        self._troubled.discard(target)

    # ---- what supervisors and people do ----

    def _look_after(self) -> None:
        self._see_heads()
        now = time.monotonic()
        for at, target, repair in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove((at, target, repair))
            self._mend(target, repair)
        for name in self._children:
            self._look_after_child(name)
        self._look_after_service()
        if QUEUE not in self._troubled:
            self._look_at_queue()

    def _look_after_child(self, name: str) -> None:
        status = self._children[name].process.poll()
        is_told = name in self._told_to_end
        if status is None or name in self._troubled or (status == 0 and not is_told):
            return
        assert status in EXPECTED, f"{name} ended with {status}: {self._children[name].log[-3000:]}"
        if status == 69:
            self.counts["gave up on the service or the queue"] += 1
        self._told_to_end.discard(name)
        self._mend_after(GONE_S, name, "start", lambda: self._children.update({name: self._start[name]()}))

    def _look_after_service(self) -> None:
        if self._starting is not None:
            if self._starting.done():
                self._starting.result()
                self._starting = None
        elif self._cluster.service.has_ended:
            self._troubled.add(SERVICE)
            self._note(SERVICE, "start")
            self._starting = self._threads.submit(self._cluster.service.start)
        elif SERVICE in self._troubled and not self._is_to_be_mended(SERVICE) and self._is_serving():
            self._troubled.discard(SERVICE)

    def _is_to_be_mended(self, target: str) -> bool:
        return any(waiting == target for _, waiting, _ in self._later)

    def _is_serving(self) -> bool:
        try:
            return httpx.get(f"{self._cluster.service.url}/readyz", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def _look_at_queue(self) -> None:
        queue = self._cluster.queue
        with contextlib.suppress(QueueAwayError):
            self._check_heads()
            for job in queue.dead():
                self._note(QUEUE, "retry a dead job")
                queue.retry(job.branch)

    def _check_heads(self) -> None:
        heads = self._cluster.queue.heads()
        self._see_heads()  # after: what the queue knows was stored before
        for branch, head in heads.items():
            assert head <= self._reached[branch], f"the queue has {branch}@{head}, the store never had"

    # ---- what is there ----

    def _stored(self, branch: str) -> int:
        """The newest revision on the disk; -1 before the first."""
        folder = self._cluster.store / branch
        return max((int(path.name) for path in folder.iterdir()), default=-1) if folder.exists() else -1

    def _is_finished(self) -> bool:
        return all(self._stored(start.branch) >= self._plan.head(start.branch) for start in self._plan.starts)

    def _all_ended(self) -> bool:
        self._look_after()
        if self._later or self._troubled or self._children[COORDINATOR].process.poll() is None:
            return False
        for child in self._children.values():  # one that was started after the end waits for another run
            if child.process.poll() is None and "waits for a run" in child.log.rstrip().rpartition("\n")[2]:
                child.signal(signal.SIGTERM)
        return all(child.process.poll() is not None for child in self._children.values())
