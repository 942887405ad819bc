"""How an upload becomes a revision: five steps, of which one counts.

    1. stage      parts stream to a folder of the store, hashed on the way; then everything in them is checked
    2. decide     under the branch's lock: is it there already, does it continue the head, may its publisher publish
    3. load       the copy that is served, the engine, and a canary that compares its numbers with the publisher's
    4. commit     manifest, fsync, rename: from here on the revision exists
    5. advance    the branch's name means the new revision, and the queue is told

What fails before 4 leaves nothing, what fails after it is ended by the publisher's retry, which is answered as the
first try would have been. A revision is published even if its publisher hangs up.

A test can end the process after a step (`service.faults`: after-stage, after-decide, after-load, after-commit,
after-advance).
"""

import asyncio
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from pydantic import JsonValue

from adapters.errors import UserError
from adapters.manifest import OPTIMISER, DamagedError, Manifest, adapter_digest, folder_digest, verify
from adapters.names import BASE, Ref, check_branch, check_name, is_start, shown
from adapters.store import Store, disk_full_as_user_error
from adapters.validate import BOUNDS, BaseShape, InvalidAdapterError, WeightBounds, check_adapter, upload_limits
from service.faults import fault
from service.publishing.decisions import (
    Kind,
    Published,
    PublishRefusedError,
    Upload,
    canary_difference,
    decide,
    decide_return,
    is_numbers,
)
from service.publishing.registry import AdapterLoadError, Extra, Registry, UnavailableError
from service.publishing.stage import Stage
from trainer.queue.tokens import may_publish

T = TypeVar("T")
Canary = Callable[[Any], Awaitable[Sequence[float]]]

log = logging.getLogger(__name__)


class Fence(Protocol):
    """Who may publish, and who wants to know of it: the queue, where there is one."""

    async def is_current(self, branch: str, token: int | None) -> bool: ...

    async def advance(self, manifest: Manifest) -> None:
        """The revision exists: it cannot be refused any more, only be told again after a failure."""
        ...


class LocalFence:
    """Without a queue: a token is not older than the newest published under, nor ahead of the clock. None is needed."""

    def __init__(self, store: Store) -> None:
        self._tokens: dict[str, int] = {}
        for branch in store.branches.values():
            for manifest in branch.live.values():
                self._see(manifest)

    async def is_current(self, branch: str, token: int | None) -> bool:
        now = time.time_ns() // 1000
        return token is None or may_publish(token, newest=self._tokens.get(branch, 0), now=now)

    async def advance(self, manifest: Manifest) -> None:
        self._see(manifest)

    def _see(self, manifest: Manifest) -> None:
        # Not the last but the largest: a retry announces an old revision again. None that is ahead of the clock: nobody
        # could publish after it.
        token = manifest.token or 0
        if token <= time.time_ns() // 1000:
            self._tokens[manifest.branch] = max(token, self._tokens.get(manifest.branch, 0))


class Publisher:
    """The only writer of the store."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        base: BaseShape,
        *,
        max_rank: int,
        canary: Canary,
        fence: Fence | None = None,
        bounds: WeightBounds = BOUNDS,
    ) -> None:
        self._store = store
        self._registry = registry
        self._base = base
        self._max_rank = max_rank
        self._bounds = bounds
        self._canary = canary
        self._fence = fence or LocalFence(store)
        self._limits = upload_limits(base, max_rank)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def stage(self) -> AsyncGenerator[Stage]:
        """Step 1, first half. The folder is gone after the block, unless a revision was made of it."""
        with disk_full_as_user_error("the store"):
            folder = await asyncio.to_thread(self._store.stage)
        stage = Stage(folder, self._limits)
        try:
            yield stage
        finally:
            if not stage.is_taken:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def publish(self, stage: Stage, upload: Upload) -> Published:
        """The staged files as a revision; RefusedError if they become none."""
        check_branch(upload.ref.branch)
        assert upload.ref.revision is not None
        stage.is_taken = True  # here and not in the task: `stage` must not delete the folder when the caller hangs up
        return await self._to_the_end(self._publish(stage, upload))

    async def fork(self, branch: str, origin: str, *, moments: bool = False) -> Published:
        """A new branch whose revision 0 is another's revision, or the base."""
        check_branch(branch)
        if not is_start(origin):
            raise UserError(f"{shown(origin)} is no start of a branch; take base, or BRANCH@REVISION")
        return await self._to_the_end(self._fork(branch, Ref.parse(origin), moments))

    async def go_back(self, branch: str, to: int, head: int, token: int | None = None) -> Published:
        """A new head with the files of an earlier revision, where this one is the head. Nothing is deleted."""
        return await self._to_the_end(self._go_back(Ref(branch, to), head, token))

    async def serve(self, name: str, folder: Path) -> str:
        """The digest of an adapter of no store, which has the name until the service ends. Twice is once."""
        if check_name(name) == BASE:  # `merged` may be one, as with --extra
            raise UserError(f"{BASE} is the base's name; take another one")
        try:
            await asyncio.to_thread(check_adapter, folder, self._base, self._max_rank, self._bounds)
        except InvalidAdapterError as error:
            raise PublishRefusedError("invalid", str(error), problems=cast(list[JsonValue], error.problems)) from None
        digest = await asyncio.to_thread(folder_digest, folder)
        served = self._registry.extras.get(name)
        # After both: another caller may have taken the name meanwhile. What is loaded never changes under its name.
        if name in self._store.branches or (served is not None and served.digest != digest):
            raise PublishRefusedError("branch-exists", f"{name} is another adapter's name; take another one")
        self._registry.extras[name] = Extra(folder, digest)
        return digest

    async def retire(self, ref: Ref) -> None:
        """Delete a revision that is not the head. Requests that use it end on it; doing it twice is doing it once."""
        await self._to_the_end(self._retire(ref))

    async def _publish(self, stage: Stage, upload: Upload) -> Published:
        ref, meta = upload.ref, dict(upload.meta or {})
        assert ref.revision is not None
        try:
            await asyncio.to_thread(self._check, stage, upload.base, meta)
            digest = adapter_digest(stage.files)
            fault("after-stage")
            # From the decision to the announcement nobody else decides about the branch: of two publishers of the
            # same revision the second meets the first one's.
            async with self._locks[ref.branch]:
                is_current = await self._fence.is_current(ref.branch, upload.token)
                branch = self._store.branch(ref.branch)
                decision = decide(branch, ref.revision, digest, upload.parent, is_current=is_current)
                fault("after-decide")
                if isinstance(decision, PublishRefusedError):
                    raise decision
                if decision is not None:
                    await asyncio.to_thread(self._mend, stage, decision)
                    await self._announce(decision)  # the first try may have died between commit and advance
                    return Published(decision, is_new=False)
                manifest = Manifest(
                    branch=ref.branch,
                    revision=ref.revision,
                    parent=ref.revision - 1,  # the head, whether the publisher named it or not
                    base=self._store.base,
                    digest=digest,
                    files=stage.files,
                    token=upload.token,
                    job=upload.job,
                    meta=meta,
                    created=datetime.now(UTC),
                )
                difference = await self._load_and_commit(stage, manifest)
                await self._announce(manifest)
                fault("after-advance")
                return Published(manifest, is_new=True, canary_difference=difference)
        finally:
            await asyncio.to_thread(shutil.rmtree, stage.folder, ignore_errors=True)

    def _mend(self, stage: Stage, manifest: Manifest) -> None:
        """The files of a revision that is sent again, where the disk has lost or damaged them."""
        if manifest.revision in self._store.branch(manifest.branch).retired:
            return  # its files went on purpose, and its publisher may not have heard that it was published
        try:
            verify(self._store.folder(manifest.ref), manifest.adapter_files)
        except DamagedError as error:
            log.warning("%s; it was sent again, and is written again", error)
            with disk_full_as_user_error("the store"):
                self._store.restore(stage.folder, manifest)

    async def _load_and_commit(self, stage: Stage, manifest: Manifest) -> float | None:
        """Steps 3 and 4. Loaded first, so that nothing is a revision that the engine cannot serve."""

        def commit() -> None:
            if manifest.branch not in self._store.branches:
                self._store.start(manifest.branch)
            self._store.commit(stage.folder, manifest)

        try:
            async with self._registry.trial(manifest.ref, manifest.digest, stage.folder) as served:
                difference = canary_difference(
                    await self._canary(served.handle), manifest.meta.get("canary"), self._registry.dtype
                )
                fault("after-load")
                with disk_full_as_user_error("the store"):
                    await asyncio.to_thread(commit)
                fault("after-commit")
                return difference
        except AdapterLoadError as error:
            raise PublishRefusedError("invalid", f"the engine does not take it: {error}") from None

    async def _announce(self, manifest: Manifest) -> None:
        """Step 5, for a head only: what came before it was announced before it, or needs it no more."""
        if manifest.revision == max(self._store.branch(manifest.branch).live, default=None):
            self._registry.flip(manifest.ref)  # whatever the queue says: who hears of it later must find it
            await self._fence.advance(manifest)

    async def _fork(self, name: str, origin: Ref, moments: bool) -> Published:
        async with AsyncExitStack() as locks:
            for locked in sorted({name, origin.branch}):  # in one order, or two forks could wait for each other
                await locks.enter_async_context(self._locks[locked])
            branch = self._store.branch(name)
            if branch.live or branch.retired:
                first, head = branch.manifest(0), max(branch.live, default=0)
                lacks_moments = moments and first is not None and first.files and OPTIMISER not in first.files
                if first is None or (first.origin or BASE) != str(origin) or lacks_moments:
                    raise PublishRefusedError(
                        "branch-exists", f"{name} is there already; its head is {head}", head=head
                    )
                await self._announce(first)
                return Published(first, is_new=False)
            with disk_full_as_user_error("the store"):
                if origin.branch == BASE:
                    manifest = await asyncio.to_thread(self._store.start, name)
                else:
                    self._registry.find(origin)  # raises where there is no such revision
                    manifest = await asyncio.to_thread(self._store.fork, name, origin, moments=moments)
            await self._announce(manifest)
            return Published(manifest, is_new=True)

    async def _go_back(self, to: Ref, head: int, token: int | None) -> Published:
        async with self._locks[to.branch]:
            self._registry.find(to)  # raises where there is no such revision
            is_current = await self._fence.is_current(to.branch, token)
            decision = decide_return(self._store.branch(to.branch), to, head, is_current=is_current)
            if isinstance(decision, PublishRefusedError):
                raise decision
            with disk_full_as_user_error("the store"):
                manifest = decision or await asyncio.to_thread(self._store.go_back, to)
            await self._announce(manifest)
            return Published(manifest, is_new=decision is None)

    async def _retire(self, ref: Ref) -> None:
        async with self._locks[ref.branch]:
            branch = self._store.branch(ref.branch)
            if ref.revision in branch.retired:
                return
            if ref.revision == max(branch.live, default=None):
                raise PublishRefusedError(
                    "head-revision", f"{ref} is the head of its branch; only older ones can be retired"
                )
            if ref.revision not in branch.live:
                raise UnavailableError("unknown-adapter", f"{ref}: there is no such revision")
            await self._registry.retire(ref)  # first: a load that is under way still reads the files
            with disk_full_as_user_error("the store"):
                await asyncio.to_thread(self._store.retire, ref)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller that hangs up stops waiting and nothing else: half a publish is none that could be retried."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def _check(self, stage: Stage, base: str | None, meta: Mapping[str, JsonValue]) -> None:
        """Step 1, second half. All problems at once, so that a publisher mends them in one go."""
        kind: Kind = "invalid"
        problems: list[str] = []
        if base not in (None, self._store.base):
            kind = "other-base"
            problems.append(f"trained on the base {shown(str(base))}, this is {self._store.base}")
        if "canary" in meta and not is_numbers(meta["canary"]):
            problems.append("meta.canary: no list of finite numbers")
        try:
            check_adapter(stage.folder, self._base, self._max_rank, self._bounds)
        except InvalidAdapterError as error:
            problems += error.problems
        if problems:
            raise PublishRefusedError(
                kind, str(InvalidAdapterError(problems)), problems=cast(list[JsonValue], problems)
            )
