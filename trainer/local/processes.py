"""Processes of ours with a log each: started, restarted, stopped in the order in which they need each other.

A process that died is started again until it has died too often without progress of the run in between. They are
children of this one, or lie on nodes of a cluster (`on_ray`). Left out: which processes a run has (`train`), who starts
an engine again (`service.supervisor`), and who ends them if we are killed (`service.processes`: they die with us).
"""

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import UserError
from service.concurrency import Stopped
from service.faults import RESTARTS_VARIABLE
from trainer.local.launching import LOST, Child, Launch, LostError, launch_here
from trainer.queue.server import LOG, Server, start

COORDINATOR, SERVICE, QUEUE = "coordinator", "service", "queue server"
_LASTING = (COORDINATOR, SERVICE, QUEUE)
"""What is no worker."""
_ADDRESSED = (SERVICE, QUEUE)
"""Whose address the others have."""
LOOK_S = 0.2
"""Between two looks at processes: soon enough for a person who waits, seldom enough to cost nothing."""
_STOP_WITHIN_S = 120.0
"""A worker finishes the update under way before it hands over; who takes longer is killed."""
_FAILED_WITHIN_S = 5.0
"""When one of them has failed, the others may wait for it in vain."""
_SERVICE_WITHIN_S = 1800.0
"""A large base is read and compiled before the service answers."""
_STILL_S = 60.0
"""Between two lines while an engine loads: a person should see that it goes on, and a log stay short."""
RESTARTS = 5
"""Without a step of the run in between. A process that dies each time has a fault that another start does not mend; by
time alone, one that loads for long would be started for ever."""
_USED_UP = f"{RESTARTS} restarts brought no step; look there, then add --resume"
_RESTARTABLE = frozenset({69, 70})
"""Exit status that is worth another start: queue or service were away for too long, or there was a bug."""


_OURS = re.compile(r"(?:coevo \w+|worker): ")
"""The beginning of a line with which our programs end: it is for people."""
_EXCEPTION = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception)(?:: .*)?)$")
"""The last line of a traceback, as Python writes it, or as vLLM's engine logs it."""
_POINTERS = ("See root cause above", "giving up")
"""Words of lines that say only that something before them failed: vLLM's, and the service's parent's."""


def error_line(log: str) -> str:
    """The line of a log that says why its process ended: its last word, or the error that this points at."""
    lines = [line for raw in log.strip().splitlines() for line in _texts(raw)]
    if not lines:
        return ""
    is_pointer = any(words in lines[-1] for words in _POINTERS)
    if _OURS.match(lines[-1]) and not is_pointer:
        return lines[-1]
    errors = [match[1] for line in lines if (match := _EXCEPTION.match(line))]
    causes = [error for error in errors if not any(words in error for words in _POINTERS)]
    # What an interpreter says at its very end, such as of leaked semaphores, is no reason.
    return causes[-1] if causes else lines[-1]


def _texts(line: str) -> list[str]:
    """The lines for a person in a line of a log: of one in JSON its message and its traceback."""
    if not line.startswith("{"):
        return [line]
    try:
        fields = json.loads(line)
        return [fields["event"].strip(), *fields.get("exception", "").splitlines()]
    except (ValueError, KeyError):  # it was cut off, or is somebody else's
        return [line]


def ending(status: int | None, line: str) -> str:
    """How a process ended, for a person: a signal, or the line in its log that says why."""
    if status is not None and status < 0:
        hint = ", as the kernel does when memory is full" if status == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{hint}" + (f"; its last line: {line}" if line else "")
    return line or f"it ended with status {status}"


@dataclass(eq=False, slots=True)
class Process:
    words: Sequence[str]
    popen: Child
    log: Path
    begin: int
    """Where this life of it begins in the log."""
    restarts: int
    """Since the run's last progress."""


class QueueServer:
    """The run's own queue server, which comes back at the same address with what it had written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._life = contextlib.ExitStack()
        self._server: Server | None = None
        self.restarts = 0

    def __enter__(self) -> "QueueServer":
        self._start(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._life.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    def restart_dead(self) -> None:
        assert self._server is not None
        if (status := self._server.process.poll()) is None:
            return
        log = self._folder / LOG
        lines = log.read_text(errors="replace").strip().splitlines()
        reason = f"{ending(status, lines[-1] if lines else '')} ({log})"
        if self.restarts == RESTARTS:
            raise UserError(f"the queue server did not go on: {reason}; {_USED_UP}")
        print(f"queue server: {reason}; starting it again", flush=True)
        self.restarts += 1
        port = int(self.url.rpartition(":")[2].split("/")[0])
        self._life.close()
        self._start(port)

    def _start(self, port: int) -> None:
        self._server = self._life.enter_context(start(self._folder, port))


@dataclass(eq=False, slots=True)
class ProcessGroup:
    """Processes with a log each, in sessions of their own: Ctrl-C reaches them through here."""

    folder: Path
    environ: dict[str, str]
    is_stopped: Callable[[], bool] = lambda: False
    """Whether somebody has told the run to stop."""
    queue: QueueServer | None = None
    """None where the queue server is somebody else's, or one of the processes."""
    launch: Launch = launch_here
    _processes: dict[str, Process] = field(default_factory=dict[str, Process])

    def __enter__(self) -> "ProcessGroup":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # A stop is no failure: workers have the time to hand over.
        self.stop(_STOP_WITHIN_S if kind in (None, Stopped) else _FAILED_WITHIN_S)

    def start(self, name: str, *words: str, **environ: str) -> None:
        path = self.folder / f"{name.replace(' ', '-')}.log"
        restarts = self._processes[name].restarts + 1 if name in self._processes else 0
        path.touch()
        begin = path.stat().st_size
        # A worker that is told to end finishes its step, and would wait minutes for a service that died too.
        death = signal.SIGTERM if name in _LASTING else signal.SIGKILL
        variables = self.environ | environ | {RESTARTS_VARIABLE: str(restarts)}
        popen = self.launch(name, words, variables, path.absolute(), death)
        self._processes[name] = Process(words, popen, path, begin, restarts)

    def serve(self, name: str, *words: str, **environ: str) -> str:
        """Starts a service and waits for it; its address."""
        began = time.monotonic()
        self.start(name, "-m", "clients.cli", "serve", *words, **environ)
        print(f"{name}: loading the engine ({self._processes[name].log})", flush=True)
        address = self.address(name, r"coevo serve: (http://\S+) serves")
        print(f"{name}: {address}, its engine loaded in {time.monotonic() - began:.0f} s", flush=True)
        return address

    def address(self, name: str, pattern: str) -> str:
        """Waits until a process says in its log where it listens."""
        began = said_at = time.monotonic()
        while not (address := re.search(pattern, self.log(name))):
            self.check_stop()
            if self.status(name) == LOST:  # already
                raise LostError(f"{name}: {self.reason(name)}")
            if not self.is_running(name) or time.monotonic() > began + _SERVICE_WITHIN_S:
                raise UserError(self.last_log_line(name))
            if time.monotonic() - said_at > _STILL_S:
                said_at = time.monotonic()
                print(f"{name}: still loading after {said_at - began:.0f} s", flush=True)
            time.sleep(LOOK_S)
        return address[1]

    def kill(self, name: str) -> None:
        """Ends a process that hears nothing any more; `restart_dead` starts it again."""
        self._processes[name].popen.kill()

    def check_stop(self) -> None:
        """Raises `Stopped` if the run is to stop."""
        if self.is_stopped():
            raise Stopped

    def log(self, name: str) -> str:
        return self._processes[name].log.read_text()[self._processes[name].begin :]

    def is_running(self, name: str) -> bool:
        return self.status(name) is None

    def status(self, name: str) -> int | None:
        return self._processes[name].popen.poll()

    def last_log_line(self, name: str) -> str:
        """Why a process did not go on, for a person."""
        return f"the {name} did not go on: {self.reason(name)} ({self._processes[name].log})"

    def reason(self, name: str) -> str:
        """What ended a process: a signal, the error in its log, or what its cluster says there."""
        if self.status(name) == LOST:
            return f"lost with its actor: {self.log(name).splitlines()[-1]}"
        return ending(self.status(name), error_line(self.log(name)))

    def progressed(self) -> None:
        """The run has made a step: every process has all its restarts again."""
        for counted in (*self._processes.values(), *filter(None, [self.queue])):
            counted.restarts = 0

    def restart_dead(self) -> None:
        """Starts processes again that died; what cannot go on ends the run."""
        if self.queue is not None:
            self.queue.restart_dead()
        for name, process in list(self._processes.items()):
            status = process.popen.poll()
            if status is None or status == 0:
                continue
            if (status == LOST and name in _ADDRESSED) or (name == QUEUE and status != 2):
                raise LostError(f"{name}: {self.reason(name)}")
            # A negative status is a signal: the kernel's for want of memory, or somebody's by hand. A service has a
            # parent that starts it again, so that the end of both is its last word.
            if name in _ADDRESSED or not (status in _RESTARTABLE or status < 0):
                raise UserError(self.last_log_line(name))
            if process.restarts == RESTARTS:
                raise UserError(f"{self.last_log_line(name)}; {_USED_UP}")
            print(f"{name}: {self.reason(name)}; starting it again", flush=True)
            self.start(name, *process.words)

    def stop(self, within_s: float = _STOP_WITHIN_S) -> None:
        """Workers first, they hand over; then the service, which takes what they publish."""
        order = (COORDINATOR, SERVICE, QUEUE)
        for name in sorted(self._processes, key=lambda name: order.index(name) if name in order else -1):
            popen = self._processes[name].popen
            if popen.poll() is None:
                popen.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(within_s)
            popen.kill()
            popen.wait()
        self._processes.clear()
