"""Keeps a run going: makes its branches, enqueues its jobs a cycle ahead, retires what no step needs any more.

It trains nothing and waits for nothing but news; how the branches do meanwhile, `monitor` measures. All it knows
follows from the recipe, the queue and the store, so it can be ended and started again at any moment; a run goes by its
recipe, and the same recipe is the same run.

Left out: doing the steps (`scheduler`), starting the processes of a run (`train`).
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from adapters.errors import UserError
from adapters.manifest import Manifest
from adapters.names import BASE, Ref
from clients.client import AsyncClient, RefusedError, ServiceError
from trainer.orchestration.monitor import RunMonitor
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, impossible, is_there
from trainer.queue.client import Job, Queue, QueueAwayError, Waiting
from trainer.recipe import Recipe
from trainer.recipe.serving import check_service

AHEAD = 2
"""Jobs of a branch in the queue: the current one and the next, so that no worker waits for the coordinator."""
_LOOK_S = 2.0
"""Between two looks when no news comes: events may be lost with a queue server, and time passes without one."""
_NEWS_S = 0.4
"""The longest wait for news in one call: less than the queue's own timeout of a second."""
_NOBODY_S = 60.0
"""A branch that stands still for so long is worth a warning. A worker that is started again needs less."""
_SLOW = 5.0
"""Times the run's usual time between two revisions of a branch."""
_INTERVALS = 100
"""Times between revisions that say what is usual: the newest, for steps get longer with their completions."""

log = logging.getLogger("coordinator")


def due(plan: Plan, run: str, heads: Mapping[str, int], decided: int | None = None) -> Iterator[Job]:
    """The job that each branch is at, and the one after it; none beyond the steps that are decided."""
    counts = Counter[str]()
    for segment in plan.segments:
        if decided is not None and segment.first >= decided:
            continue
        if heads.get(segment.branch, -1) < segment.steps[-1].number and counts[segment.branch] < AHEAD:
            counts[segment.branch] += 1
            yield Job(f"{run}:{segment.id}", run, segment.branch, segment.kind, segment.first, len(segment.steps))


def retirable(
    plan: Plan, heads: Mapping[str, int], stored: Mapping[str, Collection[int]], keep_last: int
) -> Iterator[Ref]:
    """Revisions that are no head, no phase end, none of the newest, and that no step to come and no start names."""
    # Heads are among the newest, so they need no word of their own.
    named = {ref for step in plan.steps if step.number > heads.get(step.branch, -1) for ref in step.needs}
    named |= {Ref.parse(start.origin) for start in plan.starts if start.branch not in heads and start.origin != BASE}
    ends = {step.makes for step in plan.steps if step.is_phase_end}
    for start in plan.starts:
        for revision in sorted(stored.get(start.branch, ()))[:-keep_last]:
            ref = Ref(start.branch, revision)
            if ref not in named and ref not in ends:
                yield ref


class Coordinator:
    def __init__(self, run: str, recipe: Recipe, queue: Queue, client: AsyncClient) -> None:
        self._run, self._recipe, self._plan = run, recipe, make_plan(recipe)
        self._queue, self._client = queue, client
        self._monitor = RunMonitor(run, recipe, queue, client)
        self._ends = {start.branch: self._plan.head(start.branch) for start in self._plan.starts}
        self._pace = Pace()
        self._warned: set[tuple[str, str, int]] = set()
        """What people were warned of already: the kind, the branch, its head."""
        self._heads: dict[str, int] = {}
        """At the last look."""
        self._is_away = False

    async def coordinate(self) -> None:
        """Until every branch has come to its plan's end, and all is measured."""
        # The queue first: a wrong password is told at once, a service may be waited for.
        with contextlib.suppress(QueueAwayError):
            await asyncio.to_thread(self._queue.has_run, self._run)
        await self._check_store()
        await self._put("running")
        newest = "0"
        try:
            while not await self._look():
                try:
                    newest = await asyncio.to_thread(self._wait_for_news, newest)
                except QueueAwayError:
                    await asyncio.sleep(_LOOK_S)
        finally:
            await self._monitor.close()
        await self._put("finished")
        log.info("%s is finished: %s", self._run, ", ".join(f"{name}@{end}" for name, end in self._ends.items()))

    async def _look(self) -> bool:
        """Does all that can be done now. Whether the run is over."""
        try:
            heads = await asyncio.to_thread(self._queue.heads)
            # 1. Branches that can start, and the run itself where the queue was emptied.
            for start in self._plan.starts:
                origin = Ref.parse(start.origin)
                if start.branch not in heads and (origin.branch == BASE or is_there(origin, heads)):
                    moments = origin.branch != BASE and self._recipe.optimiser.on_fork == "keep"
                    await self._client.fork(start.branch, start.origin, moments=moments)
            if not await asyncio.to_thread(self._queue.has_run, self._run):
                await self._put("running")
            # 2. Jobs. First what is decided of an adaptive rhythm: jobs behind it may still change.
            await self._monitor.recall()
            rhythm, method, decided_steps = self._monitor.rhythm, self._recipe.method, None
            if rhythm:
                self._plan = make_plan(self._recipe, rhythm)
                decided_steps = len(rhythm) * (method.rlvr_steps + method.opd_steps)
            for job in due(self._plan, self._run, heads, decided_steps):
                await asyncio.to_thread(self._queue.enqueue, job)
            # 3. Revisions that nothing needs any more.
            await self._retire(heads)
            # 4. What people should know, and what is to be measured.
            await self._warn(heads)
            is_measured = self._monitor.look(self._plan, heads)
        except (QueueAwayError, ServiceError) as error:
            # A refusal with a status would come again: that ends the run. All else is a service or queue that is away.
            if isinstance(error, RefusedError) and error.status is not None:
                raise
            if not self._is_away:  # one warning for each time, not for each look
                log.warning("%s; what is enqueued goes on", error)
            self._is_away = True
            return False
        self._is_away = False
        return is_measured and all(heads.get(branch, -1) >= end for branch, end in self._ends.items())

    def _wait_for_news(self, newest: str) -> str:
        """Blocks for at most `_LOOK_S`; the newest entry's name."""
        until = time.monotonic() + _LOOK_S
        while time.monotonic() < until:
            name = self._queue.news(newest, _NEWS_S)
            if name != newest:
                return name
        return newest

    async def _check_store(self) -> None:
        """A branch of the plan must be new, or this run's."""
        adapters = await self._client.adapters()
        check_service(adapters, self._recipe)
        for start in self._plan.starts:
            head = adapters.branches[start.branch].head if start.branch in adapters.branches else 0
            if head == 0:  # as it was forked: whoever forked it, nobody has trained it
                continue
            manifest: Manifest = await self._client.describe(start.branch, head)
            if not (manifest.job or "").startswith(f"{self._run}:"):
                maker = (manifest.job or "hand").partition(":")[0]
                raise UserError(
                    f"{start.branch}: the store has it at revision {head}, made by {maker} and not by {self._run}; "
                    "start the service with another --store, give this recipe's branches other names, or go on with "
                    "the recipe that began it"
                )
        existing = [Ref(name, revision) for name, branch in adapters.branches.items() for revision in branch.revisions]
        problems = list(impossible(self._plan, existing))
        if problems:
            raise UserError(f"{problems[0]}; publish it in this store first, or change branches.*.init")

    async def _retire(self, heads: Mapping[str, int]) -> None:
        # By the service's list: the queue knows heads only.
        branches = (await self._client.adapters()).branches
        stored = {name: branch.revisions for name, branch in branches.items()}
        for ref in retirable(self._plan, heads, stored, self._recipe.budget.keep_last):
            assert ref.revision is not None
            with contextlib.suppress(RefusedError):  # it went already
                await self._client.retire(ref.branch, ref.revision)

    # ---- what people should know ----

    async def _warn(self, heads: Mapping[str, int]) -> None:
        """Warns of lost revisions, jobs that failed for good and branches that stand still: once for each head."""
        now = time.monotonic()
        self._pace.see(heads, now)
        warnings: list[tuple[str, str, str]] = []
        for branch in self._ends:
            # A queue that was emptied knows no heads until the service has told it. That is no fall.
            before = self._heads.get(branch, 0)
            head = heads.get(branch, before)
            if head < before:  # the service says in its log what was wrong with them
                text = f"its head fell from {before} to {head}: revisions of the store were damaged, and are made again"
                warnings.append(("fell", branch, text))
        self._heads |= heads
        for job in await asyncio.to_thread(self._queue.dead):
            if job.branch in self._ends:  # another run may share the queue
                text = f"{job.job} failed for good: {job.error}; coevo jobs retry {job.branch}"
                warnings.append(("dead", job.branch, text))
        waiting = await asyncio.to_thread(self._queue.waiting, list(self._ends))
        warnings += [("waiting", branch, text) for branch, text in self._pace.stuck(waiting, now)]
        for kind, branch, text in warnings:
            key = kind, branch, heads.get(branch, 0)
            if key not in self._warned:
                self._warned.add(key)
                log.warning("%s: %s", branch, text)
                await asyncio.to_thread(partial(self._queue.tell, self._run, kind, branch=branch, text=text))

    async def _put(self, state: str) -> None:
        """Says what the run is and how it is, for as long as it takes: without it no worker begins and nobody ends."""
        record = {"state": state, "recipe": self._recipe.model_dump(mode="json")}
        event = partial(
            self._queue.tell, self._run, "run", state=state, name=self._recipe.name, branches=dict(self._ends)
        )
        while True:
            try:
                await asyncio.to_thread(self._queue.put_run, self._run, record)
                await asyncio.to_thread(event)
                return
            except QueueAwayError as error:
                log.warning("%s", error)
                await asyncio.sleep(_LOOK_S)


class Pace:
    """When each branch last came to a new revision, and how long that usually takes."""

    def __init__(self) -> None:
        self._moved: dict[str, tuple[int, float]] = {}
        """The head of each branch, and when it was first seen."""
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)

    def see(self, heads: Mapping[str, int], now: float) -> None:
        for branch, head in heads.items():
            before, since = self._moved.get(branch, (None, now))
            if head == before:
                continue
            if before is not None:  # several may have come between two looks
                self._intervals.append((now - since) / (head - before))
            self._moved[branch] = head, now

    def stuck(self, waiting: Mapping[str, Waiting], now: float) -> Iterator[tuple[str, str]]:
        """Branches that nobody works on, and those that take much longer than usual."""
        # The median: a few steps that waited for a restart say nothing of the others.
        usual = sorted(self._intervals)[len(self._intervals) // 2] if self._intervals else None
        for branch, jobs in waiting.items():
            idle_s = now - self._moved.get(branch, (0, now))[1]
            if not jobs.jobs or idle_s <= _NOBODY_S:
                continue
            if jobs.worker is None:
                yield branch, f"nobody has worked on it for {idle_s:.0f} s; start a worker with --branch {branch}"
            elif usual is not None and idle_s > _SLOW * usual:
                yield branch, f"{jobs.worker} has made no step for {idle_s:.0f} s, {usual:.0f} s is usual"
