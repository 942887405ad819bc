"""The parent of the service: starts it, passes signals on, and starts it again when its engine died.

The child's exit status decides. 70 (the engine is dead or frozen) and death by a signal are worth another try; any
other status is the child's last word and becomes the parent's own. After too many tries it ends loudly.

The child leads a process group of its own: what it leaves behind (an engine that still holds the device's memory) is
killed before the next start, and Ctrl-C reaches it once, through here. It ends when its parent does, however that
ended. Left out: health checks. The service watches itself and exits with 70.

Restarts are counted within a window of time in which the service answered. So an engine that takes minutes to load and
dies each time uses them up, and one that dies once a day does not.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Sequence

from service.faults import RESTARTS_VARIABLE
from service.processes import ARENAS, ARENAS_VARIABLE, READY_VARIABLE, die_with_parent

ENGINE_DIED = 70  # EX_SOFTWARE of sysexits.h

log = logging.getLogger(__name__)

_FORWARDED = (signal.SIGTERM, signal.SIGINT)


def supervise(
    command: Sequence[str],
    *,
    max_restarts: int = 3,
    window_s: float = 600.0,
    backoff_s: float = 1.0,
    stop_within_s: float = 60.0,
) -> int:
    """Run `command` until it ends for good; gives the exit status for this process. Call it in the main thread."""
    served = _TimeServed()
    supervisor = _Supervisor(command, _Budget(max_restarts, window_s, served.seconds), served, backoff_s, stop_within_s)
    return asyncio.run(supervisor.run())


class _TimeServed:
    """A clock that goes while the service answers, over all its lives."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since: float | None = None

    def seconds(self) -> float:
        return self._before_s + (0.0 if self._since is None else time.monotonic() - self._since)

    def start(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        self._before_s, self._since = self.seconds(), None


class _Budget:
    """So many restarts in a window of the clock's time. An engine that dies once a day is restarted for ever."""

    def __init__(self, restarts: int, window_s: float, clock: Callable[[], float]) -> None:
        self._restarts = restarts
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()

    def spent(self) -> int:
        while self._times and self._clock() - self._times[0] > self._window_s:
            self._times.popleft()
        return len(self._times)

    def take(self) -> bool:
        if self.spent() >= self._restarts:
            return False
        self._times.append(self._clock())
        return True


class _Supervisor:
    def __init__(
        self, command: Sequence[str], budget: _Budget, served: _TimeServed, backoff_s: float, stop_within_s: float
    ) -> None:
        self._command = command
        self._budget = budget
        self._served = served
        self._backoff_s = backoff_s
        self._stop_within_s = stop_within_s
        self._stop = asyncio.Event()
        self._signal = signal.SIGTERM
        self._child: Process | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _FORWARDED:
            loop.add_signal_handler(number, self._on_signal, number)
        while True:
            status = await self._run_child()
            if self._stop.is_set() or not (status == ENGINE_DIED or status < 0):
                return _exit_status(status)
            tries = self._budget.spent()
            if not self._budget.take():
                log.warning(f"the service ended {tries + 1} times and hardly served, last {_words(status)}; giving up")
                return ENGINE_DIED
            pause_s = self._backoff_s * 2**tries  # 1, 2, 4 s: what made it die may still be there
            log.warning(f"the service ended, {_words(status)}; starting it again in {pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
                return _exit_status(-self._signal)

    async def _run_child(self) -> int:
        ready, tell_ready = os.pipe()
        try:
            child = self._child = await asyncio.create_subprocess_exec(
                *die_with_parent(self._command),
                env={
                    ARENAS_VARIABLE: str(ARENAS),  # threads parse bodies
                    **os.environ,
                    RESTARTS_VARIABLE: str(self._budget.spent()),
                    READY_VARIABLE: str(tell_ready),
                },
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[tell_ready],
                start_new_session=True,  # a group of its own, which Ctrl-C in a terminal does not reach
            )
        finally:
            os.close(tell_ready)  # the child has it now
        asyncio.get_running_loop().add_reader(ready, self._on_ready, ready)
        if self._stop.is_set():  # it came while the child was being made
            child.send_signal(self._signal)
        stopping = asyncio.ensure_future(self._kill_when_late(child))
        try:
            return await child.wait()
        finally:
            self._child = None
            asyncio.get_running_loop().remove_reader(ready)
            os.close(ready)
            self._served.stop()
            stopping.cancel()
            # Right after the leader has gone: the group's number is still its own, or nobody's yet.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _on_signal(self, number: signal.Signals) -> None:
        self._signal = number
        self._stop.set()
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                self._child.send_signal(number)

    def _on_ready(self, ready: int) -> None:
        asyncio.get_running_loop().remove_reader(ready)
        if os.read(ready, 1):  # else its end was closed untold: the child is gone
            self._served.start()

    async def _kill_when_late(self, child: Process) -> None:
        await self._stop.wait()
        await asyncio.sleep(self._stop_within_s)
        log.warning(f"the service did not stop within {self._stop_within_s:g} s; killing it")
        child.kill()


def _exit_status(status: int) -> int:
    return status if status >= 0 else 128 - status  # a death by signal n: asyncio says -n, shells say 128 + n


def _words(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
