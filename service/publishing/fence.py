"""The queue's word on who may publish, and the queue told of what was published.

The queue is an index of the store, so it is told the whole store whenever it may know less: when the service starts,
when the server was emptied or restarted without its data, and after a revision that it could not be told. While it is
away, publishes are answered 503 and everything else goes on.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from adapters.errors import UserError
from adapters.manifest import Manifest
from adapters.store import DiskFullError, Store
from service.http.problems import ProblemError
from service.runs import MOST_AT_ONCE, Runs
from trainer.queue.client import OtherStoreError, Queue, QueueAwayError
from trainer.queue.jobs import DeadJob

EVERY_S = 1.0
TIMEOUT_S = 1.0  # of one try of three
RETRY_AFTER_S = 2.0

_NO_QUEUE = (QueueAwayError, OtherStoreError)
_THREADS = 8  # in a pool of its own: threads that wait for a queue that hangs are not missing elsewhere

T = TypeVar("T")

log = logging.getLogger(__name__)


@asynccontextmanager
async def fenced_by_queue(
    url: str, store: Store, runs: Runs, *, every_s: float = EVERY_S, timeout_s: float = TIMEOUT_S
) -> AsyncGenerator["QueueFence"]:
    """A fence and its watcher. A queue that is away is waited for; one that serves another store is an error."""
    fence = QueueFence(url, store, timeout_s=timeout_s)
    try:
        await fence.start()
        watcher = asyncio.create_task(fence.watch(runs, every_s))
        try:
            yield fence
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            # A run that ends stops the service right after its last event, which may still be in the queue.
            with contextlib.suppress(QueueAwayError, DiskFullError):  # the next service takes them
                await fence.take_events(runs)
    finally:
        await fence.close()


class QueueFence:
    """A `service.publishing.publisher.Fence` that asks the queue."""

    def __init__(self, url: str, store: Store, *, timeout_s: float = TIMEOUT_S) -> None:
        self.is_up = False
        """Whether the queue answered when it was asked last."""
        self._queue = Queue(url, timeout_s=timeout_s)
        self._store = store
        self._informed_life: str | None = None
        """The life of the server that has heard of every revision; a server that is restarted begins another."""
        self._informing = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "queue")
        self._trouble: type[Exception] | None = None

    async def is_current(self, branch: str, token: int | None) -> bool:
        def ask() -> bool:
            self._refresh()  # a queue that knows nothing of the store would call every token current
            return self._queue.is_current(branch, token)

        return await self._answer(ask)

    async def advance(self, manifest: Manifest) -> None:
        def tell() -> None:
            try:
                self._refresh()
                self._queue.advance(manifest.branch, manifest.revision, manifest.token)
            except _NO_QUEUE:
                self._informed_life = None  # the publisher may not ask again, so the watcher tells everything
                raise

        await self._answer(tell)

    async def dead(self) -> list[DeadJob]:
        return await self._answer(self._queue.dead)

    async def retry(self, branch: str, job: str) -> bool:
        """Whether that job of the branch was dead, and lives again."""

        def try_again() -> bool:
            is_dead = any((dead.branch, dead.job) == (branch, job) for dead in self._queue.dead())
            return is_dead and self._queue.retry(branch)

        return await self._answer(try_again)

    async def start(self) -> None:
        """Tells the queue everything, if it answers."""
        try:
            await self._in_thread(self._refresh)
            self._note(None)
        except QueueAwayError as error:
            self._note(error)

    async def watch(self, runs: Runs, every_s: float) -> None:
        """For ever: tells the queue everything again when it has forgotten, and takes its events."""
        while True:
            try:
                await self._in_thread(self._refresh)
                await self.take_events(runs)
                self._note(None)
            except Exception as error:  # whatever it is, publishes need somebody who goes on
                self._note(error)
            await asyncio.sleep(every_s)

    async def take_events(self, runs: Runs) -> None:
        """All that the queue has."""
        num_events = MOST_AT_ONCE
        while num_events == MOST_AT_ONCE:
            num_events = await self._in_thread(lambda: runs.drain(self._queue))
            runs.announce()

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        self._queue.close()

    def _refresh(self) -> None:
        """The store as it is under the lock: a later revision is told after it, never before."""
        if self._knows_all():
            return
        with self._informing:
            if self._knows_all():  # another thread has told it while this one waited for the lock
                return
            _, life = self._queue.identity()  # before the telling: what dies meanwhile is told again
            branches: dict[str, tuple[int, int]] = {}
            for name, branch in self._store.branches.items():
                manifests = [*branch.live.values(), *branch.retired.values()]
                branches[name] = branch.head, max(manifest.token or 0 for manifest in manifests)
            self._queue.reconcile(self._store.id, branches)
            self._informed_life = life

    def _knows_all(self) -> bool:
        life = self._informed_life
        return life is not None and self._queue.identity() == (self._store.id, life)

    async def _answer(self, work: Callable[[], T]) -> T:
        try:
            return await self._in_thread(work)
        except _NO_QUEUE as error:
            self._note(error)
            words = "the queue serves another store" if isinstance(error, OtherStoreError) else "the queue is away"
            raise ProblemError("queue-away", 503, f"{words}; try again", retry_after_s=RETRY_AFTER_S) from None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _note(self, error: Exception | None) -> None:
        """One line when trouble begins and one when it ends."""
        self.is_up = not isinstance(error, _NO_QUEUE)
        if error is None and self._trouble is not None:
            log.warning("the queue's events are taken and publishes are told again")
        elif error is not None and self._trouble is not type(error):
            is_foreseen = isinstance(error, UserError)
            log.warning("%s; it is tried again and again", error, exc_info=None if is_foreseen else error)
        self._trouble = None if error is None else type(error)
