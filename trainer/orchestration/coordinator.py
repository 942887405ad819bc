"""Keeps a run going: makes its branches, enqueues its jobs a cycle ahead, retires what no step needs any more.

    coevo coordinate RECIPE

It trains nothing and waits for nothing but news; how the branches do meanwhile, `observer` measures. All it knows
follows from the recipe, the queue and the store, so it can be ended and started again at any moment; a run goes by its
recipe, and the same recipe is the same run.

Left out: doing the steps (`worker`), starting the processes of a run, deleting anything else than old revisions.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from adapters.errors import UserError
from adapters.manifest import Manifest
from adapters.names import BASE, Ref
from clients.client import AsyncClient, RefusedError, ServiceError
from trainer.orchestration.monitor import RunMonitor
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, Segment, impossible, is_there
from trainer.queue.client import Job, Queue, QueueAwayError, Waiting
from trainer.recipe import Recipe
from trainer.recipe.serving import check_service

AHEAD = 2
"""Jobs of a branch in the queue: the current one and the next."""
_LOOK_S = 2.0
_NOBODY_S = 60.0
_TRACKED_S = 20.0
"""At the end, for what trackers have not got yet."""
_SLOW = 5.0
"""Times the run's usual time between two revisions of a branch."""

log = logging.getLogger("coordinator")


def job_of(segment: Segment, run: str) -> Job:
    return Job(f"{run}:{segment.id}", run, segment.branch, segment.kind, segment.first, len(segment.steps))


def due(made: Plan, run: str, heads: Mapping[str, int], decided: int | None = None) -> Iterator[Job]:
    """Of every branch the job that it is at, and the one after it; none beyond the steps that are decided."""
    count: dict[str, int] = {}
    for segment in made.segments:
        if decided is not None and segment.first >= decided:
            continue
        if heads.get(segment.branch, -1) < segment.steps[-1].number and count.get(segment.branch, 0) < AHEAD:
            count[segment.branch] = count.get(segment.branch, 0) + 1
            yield job_of(segment, run)


def retirable(
    made: Plan, heads: Mapping[str, int], kept: Mapping[str, Collection[int]], keep_last: int
) -> Iterator[Ref]:
    """Revisions that are no head, no phase end, none of the newest, and that no step to come and no start names."""
    named = {ref for step in made.steps if step.number > heads.get(step.branch, -1) for ref in step.needs}
    named |= {Ref.parse(start.origin) for start in made.starts if start.branch not in heads and start.origin != BASE}
    ends = {step.makes for step in made.steps if step.is_phase_end}
    for start in made.starts:
        for revision in sorted(kept.get(start.branch, ()))[:-keep_last]:
            ref = Ref(start.branch, revision)
            if ref not in named and ref not in ends:
                yield ref


class Coordinator:
    def __init__(self, run: str, recipe: Recipe, queue: Queue, client: AsyncClient) -> None:
        self._run, self._recipe, self._plan = run, recipe, make_plan(recipe)
        self._queue, self._client = queue, client
        self._observer = RunMonitor(run, recipe, queue, client)
        self._ends = {start.branch: self._plan.head(start.branch) for start in self._plan.starts}
        self._moved: dict[str, tuple[int, float]] = {}
        """Of each branch its head, and when that was first seen."""
        self._intervals: list[float] = []
        self._said: set[str] = set()
        self._is_away = False

    async def coordinate(self) -> None:
        """Until every branch has come to its plan's end, and all is measured."""
        await self._check_store()
        await self._put("running")
        newest = "0"
        try:
            while not await self._look():
                try:
                    newest = await asyncio.to_thread(self._news, newest)
                except QueueAwayError:
                    await asyncio.sleep(_LOOK_S)
        finally:
            await self._observer.close()
        await self._put("finished")
        log.info("%s is finished: %s", self._run, ", ".join(f"{name}@{end}" for name, end in self._ends.items()))

    async def _look(self) -> bool:
        """Does all that can be done now. Whether the run is over."""
        try:
            heads = await asyncio.to_thread(self._queue.heads)
            await self._start_branches(heads)
            if not await asyncio.to_thread(self._queue.has_run, self._run):
                await self._put("running")  # the queue was emptied
            await self._observer.recall()
            if self._observer.rhythm:
                self._plan = make_plan(self._recipe, self._observer.rhythm)
            for job in due(self._plan, self._run, heads, self._decided()):
                await asyncio.to_thread(self._queue.enqueue, job)
            await self._retire(heads)
            await self._watch(heads)
            is_measured = self._observer.look(self._plan, heads)
        except (QueueAwayError, ServiceError) as error:
            if isinstance(error, RefusedError) and error.status is not None:
                raise
            if not self._is_away:
                log.warning("%s; what is enqueued goes on", error)
            self._is_away = True
            return False
        self._is_away = False
        return is_measured and all(heads.get(branch, -1) >= end for branch, end in self._ends.items())

    def _decided(self) -> int | None:
        """Steps of each branch that nothing can change any more; None: all."""
        method = self._recipe.method
        return len(self._observer.rhythm) * (method.rlvr_steps + method.opd_steps) if self._observer.rhythm else None

    def _news(self, newest: str) -> str:
        """Blocks for at most `_LOOK_S`."""
        until = time.monotonic() + _LOOK_S
        while time.monotonic() < until:
            heard = self._queue.news(newest, 0.4)
            if heard != newest:
                return heard
        return newest

    async def _check_store(self) -> None:
        """A branch of the plan must be new, or this run's."""
        found = await self._client.adapters()
        check_service(found, self._recipe)
        for start in self._plan.starts:
            head = found.branches[start.branch].head if start.branch in found.branches else 0
            if head == 0:
                continue
            manifest: Manifest = await self._client.describe(start.branch, head)
            if not (manifest.job or "").startswith(f"{self._run}:"):
                raise UserError(
                    f"{start.branch}: the store has it at revision {head}, made by {manifest.job or 'hand'} and not "
                    f"by {self._run}; take another store, or the recipe that began it"
                )
        existing = [Ref(name, revision) for name, branch in found.branches.items() for revision in branch.revisions]
        problems = list(impossible(self._plan, existing))
        if problems:
            raise UserError(f"{problems[0]}; publish it in this store first, or change branches.*.init")

    async def _start_branches(self, heads: Mapping[str, int]) -> None:
        for start in self._plan.starts:
            origin = Ref.parse(start.origin)
            if start.branch not in heads and (origin.branch == BASE or is_there(origin, heads)):
                await self._client.fork(start.branch, start.origin)

    async def _retire(self, heads: Mapping[str, int]) -> None:
        found = await self._client.adapters()
        kept = {name: branch.revisions for name, branch in found.branches.items()}
        for ref in retirable(self._plan, heads, kept, self._recipe.budget.keep_last):
            assert ref.revision is not None
            with contextlib.suppress(RefusedError):  # it went already
                await self._client.retire(ref.branch, ref.revision)

    # ---- what people should know ----

    async def _watch(self, heads: Mapping[str, int]) -> None:
        now = time.monotonic()
        for branch, head in heads.items():
            seen, since = self._moved.get(branch, (-1, now))
            if head != seen:
                if seen >= 0:
                    self._intervals = [*self._intervals[-99:], (now - since) / (head - seen)]
                self._moved[branch] = (head, now)
        for one in [one for one in await asyncio.to_thread(self._queue.dead) if one.branch in self._ends]:
            await self._say(
                "dead", one.branch, f"{one.job} failed for good: {one.error}; coevo jobs retry {one.branch}"
            )
        waiting = await asyncio.to_thread(self._queue.waiting, list(self._ends))
        for branch, text in _stuck(waiting, self._moved, self._intervals, now):
            await self._say("waiting", branch, text)

    async def _say(self, kind: str, branch: str, text: str) -> None:
        """Once for each revision of the branch."""
        key = f"{kind} {branch} {self._moved.get(branch, (0, 0))[0]}"
        if key not in self._said:
            self._said.add(key)
            log.warning("%s: %s", branch, text)
            await asyncio.to_thread(lambda: self._queue.tell(self._run, kind, branch=branch, text=text))

    async def _put(self, state: str) -> None:
        record = {"state": state, "recipe": self._recipe.model_dump(mode="json")}
        while True:
            try:
                await asyncio.to_thread(self._queue.put_run, self._run, record)
                await asyncio.to_thread(
                    lambda: self._queue.tell(
                        self._run, "run", state=state, name=self._recipe.name, branches=dict(self._ends)
                    )
                )
                return
            except QueueAwayError as error:
                log.warning("%s", error)
                await asyncio.sleep(_LOOK_S)


def _stuck(
    waiting: Mapping[str, Waiting], moved: Mapping[str, tuple[int, float]], intervals: Sequence[float], now: float
) -> Iterator[tuple[str, str]]:
    """Branches that nobody works on, and those that take much longer than usual."""
    usual = sorted(intervals)[len(intervals) // 2] if intervals else None
    for branch, one in waiting.items():
        idle_s = now - moved.get(branch, (0, now))[1]
        if one.jobs and one.worker is None and idle_s > _NOBODY_S:
            yield branch, f"nobody has worked on it for {idle_s:.0f} s; start a worker with --branch {branch}"
        elif one.jobs and usual is not None and idle_s > max(_NOBODY_S, _SLOW * usual):
            yield branch, f"{one.worker} has made no step for {idle_s:.0f} s, {usual:.0f} s is usual"
