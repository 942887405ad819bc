"""The thread that keeps a worker's leases while it computes, and hears what changes in the queue.

It has a connection of its own and does nothing that takes long, so a long step or a busy event loop delays no renewal.
A lease is lost only when the queue says so: a server that is away says nothing, and the worker goes on.
"""

import asyncio
import contextlib
import logging
import threading
import time

from trainer.queue.client import Lease, Queue, QueueAwayError

LISTEN_S = 0.4
"""How long one question for news lasts: below the queue client's timeout of a second, so that silence is no failure."""

log = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """Made on the event loop that it wakes."""

    def __init__(self, queue: Queue, worker: str) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._queue, self._worker = queue, worker
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._leases: dict[str, Lease] = {}
        self._lost: list[Lease] = []
        self._changed = asyncio.Event()
        self._ended = threading.Event()

    # ---- the worker's side ----

    @property
    def leases(self) -> dict[str, Lease]:
        with self._lock:
            return dict(self._leases)

    def hold(self, lease: Lease) -> None:
        with self._lock:
            self._leases[lease.branch] = lease

    def drop(self, lease: Lease) -> None:
        with self._lock:
            if self._leases.get(lease.branch) == lease:
                del self._leases[lease.branch]

    def holds(self, lease: Lease) -> bool:
        return self.leases.get(lease.branch) == lease

    def take_lost(self) -> list[Lease]:
        """Leases that went to other workers; each is told once."""
        with self._lock:
            lost, self._lost = self._lost, []
        return lost

    async def change(self, timeout_s: float) -> None:
        """Waits until something may have changed since the last call returned."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    def wake(self) -> None:
        """From the event loop's own thread."""
        self._changed.set()

    def end(self) -> None:
        self._ended.set()

    # ---- the thread ----

    def run(self) -> None:
        newest, renew_at, is_away = "0", 0.0, False
        while not self._ended.is_set():
            try:
                if time.monotonic() >= renew_at:
                    self._renew()
                    # Four times a lease: three may fail, or wait behind a busy machine, before it runs out.
                    renew_at = time.monotonic() + self._queue.lease_s / 4
                news = self._queue.news(newest, min(LISTEN_S, self._queue.lease_s / 8))
                # A server that is back may have lost what it had to say: look in any case.
                if news != newest or is_away:
                    self._notify()
                newest, is_away = news, False
            except QueueAwayError as error:
                if not is_away:
                    log.warning("%s; the work goes on, what is ready waits", error)
                is_away, renew_at = True, 0.0
                self._ended.wait(LISTEN_S)

    def _renew(self) -> None:
        leases = list(self.leases.values())
        renewed = self._queue.renew(self._worker, leases) if leases else []
        with self._lock:
            for lease in leases:
                # The worker may have dropped it, or claimed the branch anew, while the queue was asked.
                if lease not in renewed and self._leases.get(lease.branch) == lease:
                    del self._leases[lease.branch]
                    self._lost.append(lease)
        if len(renewed) < len(leases):
            self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and this thread is about to
            self._loop.call_soon_threadsafe(self._changed.set)
