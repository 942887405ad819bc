"""Processes of ours with a log each: started, looked after, stopped in the order in which they need each other.

Left out: which processes a run has (`training`), and who ends them if we are killed (`service.processes`: they die
with us).
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import UserError
from service.processes import die_with_parent

COORDINATOR, SERVICE = "coordinator", "service"
_LOOK_S = 0.2
_STOP_WITHIN_S = 120.0
_FAILED_WITHIN_S = 5.0
"""When one of them has failed, the others may wait for it in vain."""
_SERVICE_WITHIN_S = 1800.0
"""A large base is read and compiled before the service answers."""
_RESTARTS = 5
_LIVED_S = 600.0
"""Who has lived so long starts with all its restarts again."""
_AGAIN = frozenset({69, 70})
"""Exit status of a worker that is worth another start."""


@dataclass(eq=False, slots=True)
class Process:
    words: Sequence[str]
    process: subprocess.Popen[bytes]
    log: Path
    begin: int
    """Of this life in the log."""
    restarts: int
    began: float = field(default_factory=time.monotonic)


@dataclass(eq=False, slots=True)
class ProcessGroup:
    """Processes with a log each, in sessions of their own: Ctrl-C reaches them through here."""

    folder: Path
    environ: dict[str, str]
    _children: dict[str, Process] = field(default_factory=dict[str, Process])

    def __enter__(self) -> "ProcessGroup":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(_STOP_WITHIN_S if kind is None else _FAILED_WITHIN_S)

    def start(self, name: str, *words: str, **environ: str) -> None:
        path = self.folder / f"{name}.log"
        with path.open("a") as log:
            begin = log.tell()
            process = subprocess.Popen(
                die_with_parent([sys.executable, *words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environ | environ,
                start_new_session=True,
            )
        before = self._children.get(name)
        is_again = before is not None and time.monotonic() - before.began < _LIVED_S
        self._children[name] = Process(words, process, path, begin, before.restarts + 1 if before and is_again else 0)

    def serve(self, name: str, *words: str, is_stopped: Callable[[], bool], **environ: str) -> str | None:
        """Starts a service and waits for it; its address. None: told to stop before it answers."""
        self.start(name, "-m", "clients.cli", "serve", *words, **environ)
        deadline = time.monotonic() + _SERVICE_WITHIN_S
        while not is_stopped():
            if found := re.search(r"coevo serve: (http://\S+) serves", self.log(name)):
                return found[1]
            if not self.is_running(name) or time.monotonic() > deadline:
                raise UserError(self.last_words(name))
            time.sleep(_LOOK_S)
        return None

    def log(self, name: str) -> str:
        return self._children[name].log.read_text()[self._children[name].begin :]

    def is_running(self, name: str) -> bool:
        return self.status(name) is None

    def status(self, name: str) -> int | None:
        return self._children[name].process.poll()

    def last_words(self, name: str) -> str:
        lines = self.log(name).strip().splitlines()
        said = lines[-1] if lines else f"it ended with status {self.status(name)}"
        return f"the {name} did not go on: {said} ({self._children[name].log})"

    def look_after(self) -> None:
        """Starts workers again that died; what cannot go on ends the run."""
        for name, child in list(self._children.items()):
            status = child.process.poll()
            if status is None or status == 0:
                continue
            is_worker = name not in (COORDINATOR, SERVICE)
            if is_worker and (status in _AGAIN or status < 0) and child.restarts < _RESTARTS:
                self.start(name, *child.words)
            else:
                raise UserError(self.last_words(name))

    def stop(self, within_s: float = _STOP_WITHIN_S) -> None:
        """Workers first, they hand over; the service last, it takes what they publish."""
        for name in sorted(self._children, key=lambda name: (name == SERVICE, name == COORDINATOR)):
            process = self._children[name].process
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(within_s)
            process.kill()
            process.wait()
        self._children.clear()
