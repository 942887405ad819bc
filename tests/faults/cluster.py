"""A whole run as processes: queue server, service, coordinator, workers; and what must hold whatever happens to them.

The invariants, asserted by `check`:
    I1  no head ever went back            I4  what was told to be published is in the store
    I2  every revision up to the head has one manifest, and its files are what that says
    I3  no job is both done and queued    I5  the service answers
    I6  every key of the queue has a time to live, or is meant to stay
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path

import httpx
import redis

from adapters.manifest import read_manifest, verify
from tests.engine.service_process import ServiceProcess
from tests.faults.nursery import Fork, Nursery
from tests.faults.queue_process import QueueProcess
from tests.faults.recipes import MINIATURE
from trainer.plan.make import make_plan
from trainer.queue.client import PERMANENT, Queue
from trainer.recipe.file import load, run_id

PATIENCE_S = 280.0  # a little less than pytest's, which shows no log


class Child:
    """`python -m module words` with its log; from a nursery it is there sooner."""

    def __init__(self, log: Path, module: str, *words: str, nursery: Nursery | None = None, **environ: str) -> None:
        self._log = log
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environ
        with log.open("ab") as file:
            self._begin = file.tell()
            self.process: subprocess.Popen[bytes] | Fork = (
                nursery.fork(module, *words, log=log, environ=variables)
                if nursery
                else subprocess.Popen(
                    [sys.executable, "-m", module, *words],
                    stdout=file,
                    stderr=file,
                    env=variables,
                    start_new_session=True,
                )
            )

    @property
    def log(self) -> str:
        """What this process said: those before it of the same name wrote into the same file."""
        return self._log.read_bytes()[self._begin :].decode()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> int:
        """With everything that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there after {timeout_s:g} s:\n{self.log[-3000:]}") from None

    def wake(self) -> None:
        self.signal(signal.SIGCONT)

    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it, at a fault point."""
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Cluster:
    """Queue and service run; coordinators and workers are started by name. `close` ends everything."""

    def __init__(
        self, folder: Path, *flags: str, nursery: Nursery | None = None, lease_s: float = 4.0, **environ: str
    ) -> None:
        self.folder, self.lease_s = folder, lease_s
        self._nursery = nursery
        self.server = QueueProcess(folder / "queue")
        self.server.start()
        self.environ = {"COEVO_REDIS_URL": self.server.url, "TMPDIR": str(folder)} | environ
        self.store = folder / "store"
        words = (str(MINIATURE), f"--runs={folder / 'runs'}", *flags)
        try:
            self.service = ServiceProcess(self.store, *words, **self.environ)
        except BaseException:
            self.server.stop()
            raise
        self.queue = Queue(self.server.url)
        self.children: list[Child] = []
        self._heads: dict[str, int] = {}
        self._ended = threading.Event()

    def close(self) -> None:
        for child in self.children:
            child.kill()
        self.service.stop()
        self.queue.close()
        self.server.stop()

    def reach(self, address: str) -> None:
        """Queue and service are there from now on, for whoever is started and for the checks."""
        self.server.url = self.server.url.replace("127.0.0.1", address)
        self.service.url = self.service.url.replace("0.0.0.0", address)
        self.queue.close()
        self.queue = Queue(self.server.url)
        self.environ["COEVO_REDIS_URL"] = self.server.url

    # ---- processes ----

    def coordinator(self, recipe: Path) -> Child:
        return self._start("coordinator", self._nursery, "clients.cli", "coordinate", str(recipe))

    def worker(
        self, *branches: str, name: str, words: tuple[str, ...] = (), is_fork: bool = True, **environ: str
    ) -> Child:
        """`is_fork`: in the nursery's interpreter and network, where there is a nursery."""
        named = [word for branch in branches for word in ("--branch", branch)]
        every = (*named, "--name", name, f"--lease={self.lease_s}", *words)
        return self._start(name, self._nursery if is_fork else None, "trainer.worker", *every, **environ)

    def _start(self, name: str, nursery: Nursery | None, module: str, *words: str, **environ: str) -> Child:
        variables = self.environ | {"COEVO_SERVICE_URL": self.service.url} | environ
        child = Child(self.folder / f"{name}.log", module, *words, nursery=nursery, **variables)
        self.children.append(child)
        return child

    # ---- what can be seen ----

    def heads(self) -> dict[str, int]:
        """As the service has them."""
        branches = httpx.get(f"{self.service.url}/adapters", timeout=10).json()["branches"]
        return {name: branch["head"] for name, branch in branches.items()}

    def events(self, run: str) -> list[dict]:
        path = self.folder / "runs" / run / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, "\n".join(child.log[-1500:] for child in self.children)
            time.sleep(0.05)

    def wait_for_head(self, branch: str, revision: int) -> None:
        self.wait_until(lambda: self.heads().get(branch, -1) >= revision)

    # ---- what must hold ----

    def check(self, recipe: Path, made_again: Set[tuple[str, int]] = frozenset()) -> None:
        """All of them, for a run that is finished. Steps whose revision the store lost may have been made again."""
        assert httpx.get(f"{self.service.url}/healthz", timeout=5).status_code == 200  # I5
        plan, run = make_plan(load(recipe)), run_id(load(recipe))
        heads = self.heads()
        assert {start.branch: heads[start.branch] for start in plan.starts} == {
            start.branch: plan.head(start.branch) for start in plan.starts
        }
        self.check_store()
        self.check_queue()
        done = [(event["branch"], event["step"]) for event in self.events(run) if event["kind"] == "step"]
        # A step whose worker died untold is not in here.
        assert {step for step, times in Counter(done).items() if times > 1} <= made_again, "a step was made twice"
        assert set(done) <= {(step.branch, step.number) for step in plan.steps}
        for branch, step in done:
            assert (self.store / branch / str(step) / "manifest.json").exists()  # I4
        for step in plan.steps:
            manifest = read_manifest(self.store / step.branch / str(step.number))
            assert manifest.meta["teachers"] == [str(teacher.ref) for teacher in step.teachers]

    def check_store(self) -> None:
        check_store(self.store)

    def check_queue(self) -> None:
        heads = self.queue.heads()
        for branch, head in heads.items():
            assert head >= self._heads.get(branch, -1)  # I1
            assert all(job.last > head for job in self.queue.waiting([branch])[branch].jobs)  # I3
        self._heads = heads
        assert heads == self.heads()
        with redis.Redis.from_url(self.server.url, decode_responses=True) as server:
            assert {key for key in server.scan_iter() if server.ttl(key) == -1} <= PERMANENT  # I6


def check_store(store: Path) -> None:
    """Every revision up to the head is there, and whole."""
    for branch in (path for path in store.iterdir() if path.is_dir() and not path.name.startswith(".")):
        numbers = sorted(int(path.name) for path in branch.iterdir())
        assert numbers == list(range(len(numbers))), f"{branch.name}: {numbers}"
        for number in numbers:
            manifest = read_manifest(branch / str(number))
            assert (manifest.branch, manifest.revision) == (branch.name, number)
            if not (branch / str(number) / "retired").exists():
                verify(branch / str(number), manifest.adapter_files)  # I2
    assert not list((store / ".staging").iterdir())
