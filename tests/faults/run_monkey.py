"""Random faults in `coevo run`, from a seed: any of its processes is killed or frozen, the run itself is stopped or
killed, its store is damaged, hostile adapters are sent.

The run starts its own processes again. What ended the run itself must be told in its last line; then it goes on with
--resume, as a person makes it.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.faults.monkey import FROZEN_S
from tests.faults.vandal import DAMAGE, HOSTILE, REFUSED, upload
from trainer.plan.make import make_plan
from trainer.recipe.file import load

PROCESSES = {
    "worker": "trainer.worker",
    "coordinator": "coordinate",
    "queue": "valkey-server",
    "service": "service.command",
    "engine": "VLLM::EngineCore",
}
"""The words by which a process of the run is known."""
WEIGHTS = {"worker": 7, "coordinator": 3, "queue": 3, "service": 2, "engine": 1, "run": 2, "store": 1, "upload": 2}
PATIENCE_S = 300.0
_LOOK_S = 0.2


class RunMonkey:
    """`coevo run` of a recipe in a folder."""

    def __init__(self, recipe: Path, out: Path, *, seed: int, pause_s: tuple[float, float] = (2.0, 8.0)) -> None:
        self.recipe, self.out = recipe, out
        self.counts: Counter[str] = Counter()
        self.made_again: set[tuple[str, int]] = set()
        self._plan = make_plan(load(recipe))
        self._ends = {start.branch: self._plan.head(start.branch) for start in self._plan.starts}
        self._reached = dict.fromkeys(self._ends, -1)
        self._random, self._pause_s = random.Random(seed), pause_s
        self._frozen: list[tuple[float, psutil.Process]] = []
        self._log = out.with_suffix(".log")
        self._start()

    def play(self, seconds: float) -> None:
        """Faults for so long from the first step on, or until every branch is near its end."""
        self._wait_until(lambda: self.steps > 0)
        end = time.monotonic() + seconds
        next_at = time.monotonic() + self._random.uniform(*self._pause_s)
        while time.monotonic() < end and any(self._stored(branch) < last for branch, last in self._ends.items()):
            if time.monotonic() >= next_at:
                self._do_something()
                next_at = time.monotonic() + self._random.uniform(*self._pause_s)
            self._look_after()
            time.sleep(_LOOK_S)
        for _, process in self._frozen:
            _thaw(process)
        self._frozen = []

    def finish(self, timeout_s: float) -> None:
        """Without faults, until the run has ended well."""
        self._wait_until(lambda: self._process.poll() == 0, timeout_s)

    def close(self) -> None:
        """With everything that it started."""
        self._kill_all()

    @property
    def steps(self) -> int:
        return sum(max(self._stored(branch), 0) for branch in self._ends)

    # ---- faults ----

    def _do_something(self) -> None:
        """To a run that has made a step since it was started: else it would never come so far."""
        (target,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if self.steps == self._steps_at_start:
            return
        if target == "run":
            self._trouble_run()
        elif target == "store":
            self._trouble_store()
        elif target == "upload":
            self._upload()
        elif processes := self._processes(target):
            process, fault = self._random.choice(processes), self._random.choice(["kill", "freeze"])
            self.counts[f"{target}: {fault}"] += 1
            with contextlib.suppress(psutil.NoSuchProcess):
                if fault == "kill":
                    process.kill()
                else:
                    process.suspend()
                    self._frozen.append((time.monotonic() + self._random.uniform(*FROZEN_S), process))

    def _trouble_run(self) -> None:
        fault = self._random.choice(["kill", "stop"])
        self.counts[f"run: {fault}"] += 1
        if fault == "kill":
            self._process.kill()  # and its processes die with it
        else:
            self._process.terminate()
            self._stops += 1

    def _trouble_store(self) -> None:
        if not (services := self._processes("service")):
            return
        services[0].suspend()  # what it was to publish now would hide the head
        self._see_heads()
        branches = [name for name, reached in self._reached.items() if 0 < self._stored(name) == reached]
        branches = [name for name in branches if self._reached[name] < self._ends[name]]  # else its worker is gone
        if branches:
            branch, damage = self._random.choice(branches), self._random.choice(sorted(DAMAGE))
            head = self._stored(branch)
            DAMAGE[damage](self.out / "store" / branch / str(head))
            self.made_again.add((branch, head))
            self.counts[f"store: {damage}"] += 1
        services[0].kill()

    def _upload(self) -> None:
        (branch, head), kind = self._random.choice(sorted(self._reached.items())), self._random.choice(sorted(HOSTILE))
        source, urls = self.out / "store" / branch / str(head), re.findall(r"service: (http://\S+),", self.said)
        if head < 1 or not urls or not source.exists():
            return
        self.counts[f"upload: {kind}"] += 1
        with contextlib.suppress(
            httpx.TransportError, FileNotFoundError
        ):  # the service went, or the source was damaged
            response = upload(urls[-1], kind, source, branch, head + 1)
            assert response.status_code in REFUSED | {429, 503}, f"{kind}: {response.status_code} {response.text}"

    # ---- what a person does ----

    def _look_after(self) -> None:
        self._see_heads()
        for at, process in [entry for entry in self._frozen if entry[0] <= time.monotonic()]:
            self._frozen.remove((at, process))
            _thaw(process)
        status = self._process.poll()
        if status in (None, 0):
            return
        last = self.said.rstrip().rpartition("\n")[2]
        if self._stops > 1 and status == 128 + signal.SIGTERM:  # once more is at once, as it said
            assert "once more to stop at once" in self.said
            self.counts["resumed: stopped at once"] += 1
        elif status != -signal.SIGKILL:  # else it could say nothing
            assert last.startswith(("coevo run: ", "stopped; to go on: ")), f"{status}: {self.said[-3000:]}"
            self.counts["resumed: stopped" if last.startswith("stopped") else f"resumed: {last[:100]}"] += 1
        self._kill_all()
        self._start()

    def _start(self) -> None:
        words = ["run", str(self.recipe), "--out", str(self.out), "--resume", "--worker-each", "--unchecked"]
        with self._log.open("ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clients.cli", *words], stdout=log, stderr=log, start_new_session=True
            )
        self._family: set[psutil.Process] = set()
        self._steps_at_start, self._stops = self.steps, 0

    def _kill_all(self) -> None:
        """What was frozen cannot die with its parent's end before it wakes."""
        self._processes("worker")  # so that the youngest are known
        self._process.kill()
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(self._family, PATIENCE_S)

    # ---- what is there ----

    @property
    def said(self) -> str:
        """Since it was started last."""
        return self._log.read_bytes()[self._begin :].decode()

    def _processes(self, target: str) -> list[psutil.Process]:
        matches: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family |= set(psutil.Process(self._process.pid).children(recursive=True))
        for process in self._family:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if PROCESSES[target] in process.cmdline() or process.name() == PROCESSES[target]:
                    matches.append(process)
        return sorted(matches, key=lambda process: process.pid)

    def _see_heads(self) -> None:
        for branch in self._ends:
            self._reached[branch] = max(self._reached[branch], self._stored(branch))

    def _stored(self, branch: str) -> int:
        folder = self.out / "store" / branch
        return max((int(path.name) for path in folder.iterdir()), default=-1) if folder.exists() else -1

    def _wait_until(self, is_so: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, self.said[-3000:]
            self._look_after()
            time.sleep(_LOOK_S)


def _thaw(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was ended while it was frozen
        os.kill(process.pid, signal.SIGCONT)
