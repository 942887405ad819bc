"""What one worker does: takes branches, makes their steps as they become ready, gives them back.

A step is ready when every revision that it names is published. Of several branches any ready step is made, first that
of the branch with the most to go, which would be left alone at the end; and while one branch learns, others' rollouts
and scores are already made: `budget.prefetch` of them. None of this changes a revision, since everything that a step
reads is named by one.

Left out: what a step computes (`loop`), which steps there are (`make_plan`), and the process around it (`worker`).
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from adapters.errors import UserError
from adapters.names import Ref
from clients.client import ServiceError
from service.faults import fault
from trainer.loop import Batch, StepContext, publish
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.replay import record
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided
from trainer.plan.steps import Plan, Step, is_there
from trainer.queue.client import Lease, NotReconciledError, Queue, QueueAwayError, Refusal
from trainer.recipe import Recipe
from trainer.rollout.metrics import warnings
from trainer.update.learner import Learner
from trainer.update.update import Update

PATIENCE_S = 600.0
_LOOK_S = 2.0
_MOST_SKIPPED = 3
_LOST = frozenset({"fenced", "stale-parent", "revision-exists"})

T = TypeVar("T")

log = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class Run:
    """What the queue has of a run."""

    id: str
    recipe: Recipe
    plan: Plan


class StepScheduler:
    """`gather` makes a step's batch; what it reads is named by revision, so it may be recorded rollouts as well."""

    def __init__(
        self,
        run: Run,
        branches: Sequence[str],
        *,
        name: str,
        queue: Queue,
        pulse: Heartbeat,
        arena: StepContext,
        learner: Learner,
        gather: Callable[[Step], Awaitable[Batch]],
    ) -> None:
        self._run = run
        self._name = name
        self._queue, self._pulse = queue, pulse
        self._arena, self._learner, self._gather = arena, learner, gather
        self._ends = {branch: run.plan.head(branch) for branch in branches}
        self._follow(run.plan)
        self._under_way: set[str] = set()
        self._skipped: dict[str, int] = {}
        self._stopping = asyncio.Event()
        self._looking, self._learning = asyncio.Lock(), asyncio.Lock()

    def _follow(self, made: Plan) -> None:
        steps = [step for step in made.steps if step.branch in self._ends]
        self._steps = {step.makes: step for step in steps}
        self._places = {step.makes: place for place, step in enumerate(steps)}

    def stop(self) -> None:
        """After the update under way."""
        self._stopping.set()
        self._pulse.wake()

    async def work(self) -> None:
        """Until the plan is done for this worker's branches, or it is told to stop."""
        hands = [asyncio.create_task(self._hand()) for _ in range(1 + self._run.recipe.budget.prefetch)]
        try:
            await asyncio.wait(hands)
        finally:
            for lease in self._pulse.leases.values():
                await self._give_back(lease)
        for hand in hands:
            hand.result()

    async def _hand(self) -> None:
        """A step at a time, from its rollouts to its revision. Only one hand learns at a time."""
        try:
            while (found := await self._next()) is not None:
                step, lease = found
                began = time.monotonic()
                try:
                    batch = await cancelled_by(self._stopping, self._try(step, lease, self._gather(step)))
                    gather_s = time.monotonic() - began
                    if batch is not None:
                        await self._finish(step, lease, batch, gather_s)
                finally:
                    self._under_way.discard(step.branch)
                    self._pulse.wake()
        except BaseException:
            self.stop()  # the other hands must see this end
            raise

    # ---- which step ----

    async def _next(self) -> tuple[Step, Lease] | None:
        """The next ready step of a branch that is ours, which is under way from now on; None at the end."""
        async with self._looking:
            found = await self._look()
            if found is not None:
                self._under_way.add(found[0].branch)
            return found

    async def _look(self) -> tuple[Step, Lease] | None:
        while not self._stopping.is_set():
            wait_s = _LOOK_S
            try:
                for lost in self._pulse.take_lost():
                    await self._lose(lost)
                heads = await asyncio.to_thread(self._queue.heads)
                if all(heads.get(branch, -1) >= end for branch, end in self._ends.items()) and not self._under_way:
                    return None
                wait_s = min([_LOOK_S, *[await self._claim(branch, heads) for branch in self._free(heads)]])
                if ready := [
                    one for one in self._candidates(heads) if all(is_there(ref, heads) for ref in one[0].needs)
                ]:
                    return min(ready, key=self._urgency)
            except NotReconciledError as error:
                log.info("%s", error)
            except QueueAwayError:
                pass  # the pulse has said so
            await self._pulse.change(wait_s)
        return None

    def _urgency(self, one: tuple[Step, Lease]) -> tuple[int, int]:
        """The lowest is made first."""
        step = one[0]
        return step.number - self._ends[step.branch], self._places[step.makes]

    def _free(self, heads: dict[str, int]) -> list[str]:
        """Branches that are nobody's yet, as far as we know, and that have steps left."""
        leases = self._pulse.leases
        return [
            branch
            for branch, end in self._ends.items()
            if branch not in leases and branch not in self._under_way and heads.get(branch, -1) < end
        ]

    def _candidates(self, heads: dict[str, int]) -> list[tuple[Step, Lease]]:
        """The next step of each job that is ours."""
        found: list[tuple[Step, Lease]] = []
        for branch, lease in self._pulse.leases.items():
            number = heads.get(branch, -1) + 1
            if branch not in self._under_way and lease.job.first < number <= lease.job.last:
                found.append((self._steps[Ref(branch, number)], lease))
        return found

    async def _claim(self, branch: str, heads: dict[str, int]) -> float:
        """Takes the branch if it can be had; seconds until it is worth another look."""
        found = await asyncio.to_thread(self._queue.claim, branch, self._name)
        if isinstance(found, Refusal):
            return max(0.05, found.left_s + 0.02) if found.why == "held" else _LOOK_S
        if found.job.run != self._run.id:
            await asyncio.to_thread(self._queue.release, found)
            return _LOOK_S
        await self._hold(found)
        fault(f"claimed:{branch}@{heads.get(branch, 0)}")
        await self._tell("lease", branch=branch, what="claimed", job=found.job.id)
        return 0.0

    # ---- a step ----

    async def _finish(self, step: Step, lease: Lease, batch: Batch, gather_s: float) -> None:
        """The second half of a step, from the batch to the published revision."""
        async with self._learning:
            learn_s = -time.monotonic()
            update = await self._try(step, lease, self._learn(step, lease, batch))
            learn_s += time.monotonic()
        if update is None:
            return
        done = await self._try(step, lease, self._publish(step, lease, batch, update, gather_s, learn_s))
        if done and step.number == lease.job.last and self._pulse.holds(lease):
            await self._hand_on(lease)

    async def _learn(self, step: Step, lease: Lease, batch: Batch) -> Update | None:
        """None: the lease was lost while others learnt."""
        if not self._pulse.holds(lease):
            return None
        fault(f"gathered:{step.makes}")
        await self._learner.prepare(step.parent, self._arena.client)
        update = await asyncio.to_thread(self._learner.learn, step.branch, batch.parts)
        fault(f"learnt:{step.makes}")
        return update

    async def _publish(
        self, step: Step, lease: Lease, batch: Batch, update: Update, gather_s: float, learn_s: float
    ) -> bool:
        """While another branch learns. False: it was published already, by another worker."""
        began = time.monotonic()
        made = await publish(step, self._arena, self._learner, batch, update, token=lease.token, job=lease.job.id)
        fault(f"published:{step.makes}")
        if made.token != lease.token:  # another worker was there before, with the same bits, and has told of it
            await self._lose(lease)
            return False
        metrics = {**batch.metrics, **update.metrics}
        await self._tell(
            "step",
            branch=step.branch,
            step=step.number,
            phase=lease.job.kind,
            job=lease.job.id,
            teachers=[str(teacher.ref) for teacher in step.teachers],
            skipped=update.skipped,
            metrics={name: value for name, value in metrics.items() if value == value},
            seconds={"gather": gather_s, "learn": learn_s, "publish": time.monotonic() - began},
            warnings=list(warnings(metrics)),
        )
        await self._keep_rollouts(step, batch)
        if update.skipped is None:
            self._skipped[step.branch] = 0
            return True
        count = self._skipped[step.branch] = self._skipped.get(step.branch, 0) + 1
        if count >= _MOST_SKIPPED:
            self._skipped[step.branch] = 0
            error = f"{_MOST_SKIPPED} steps in a row were skipped, the last because {update.skipped}"
            await self._fail(step, lease, error, fatal=True)
        return True

    async def _keep_rollouts(self, step: Step, batch: Batch) -> None:
        """For people; the run goes on without them."""
        try:
            kept = await asyncio.to_thread(record, self._run.id, step, batch)
            await self._arena.client.put_rollouts(self._run.id, step.branch, step.number, kept)
        except ServiceError as error:
            log.warning("%s: its rollouts were not kept: %s", step.makes, error)

    async def _try(self, step: Step, lease: Lease, work: Awaitable[T]) -> T | None:
        """None if it failed; then the branch is given back, or is another's already."""
        try:
            return await work
        except ServiceError as error:
            if error.type in _LOST:
                await self._lose(lease)
            elif not isinstance(error, UserError) or error.status is None:
                raise  # the service is away: no fault of the job
            else:
                await self._fail(step, lease, str(error))
        except UserError as error:
            await self._fail(step, lease, str(error))
        except Exception as error:
            traceback.print_exc()
            await self._fail(step, lease, f"{type(error).__name__}: {error}")
        return None

    async def _fail(self, step: Step, lease: Lease, error: str, *, fatal: bool = False) -> None:
        log.error("%s: %s", step.makes, error)
        self._pulse.drop(lease)
        answer = await retry_while_away(lambda: self._queue.release(lease, error, fatal=fatal))
        await self._tell("failed", branch=step.branch, step=step.number, error=error, dead=answer == "dead")

    # ---- leases ----

    async def _hand_on(self, lease: Lease) -> None:
        """At the end of a job: the branch's next one, under a token of its own, if there is one."""
        found = await retry_while_away(lambda: self._queue.claim(lease.branch, self._name))
        if isinstance(found, Lease) and found.job.run == self._run.id:
            await self._hold(found)
        elif self._pulse.holds(lease):
            await self._give_back(lease)

    async def _hold(self, lease: Lease) -> None:
        """Of an adaptive rhythm a job's steps are decided before it is queued."""
        method = self._run.recipe.method
        if method.rhythm == "adaptive":
            agreed = await retry_while_away(lambda: self._queue.agreed(self._run.id))
            self._follow(make_plan(self._run.recipe, decided(agreed, method.rlvr_steps)))
        self._pulse.hold(lease)

    async def _give_back(self, lease: Lease) -> None:
        self._pulse.drop(lease)
        try:
            await asyncio.to_thread(self._queue.release, lease)
            await self._tell("lease", branch=lease.branch, what="released", job=lease.job.id)
        except QueueAwayError:
            log.warning("%s: not released, the queue is away; it runs out by itself", lease.branch)

    async def _lose(self, lease: Lease) -> None:
        self._pulse.drop(lease)
        log.warning("%s: its lease went to another worker; what was learnt since is dropped", lease.branch)
        await self._tell("lease", branch=lease.branch, what="lost", job=lease.job.id)

    async def _tell(self, kind: str, **what: Any) -> None:
        """Events are for people: a queue that is away loses them, and nothing else."""
        try:
            await asyncio.to_thread(partial(self._queue.tell, self._run.id, kind, worker=self._name, **what))
        except QueueAwayError:
            log.warning("not told, the queue is away: %s %s", kind, what.get("branch", ""))


async def cancelled_by(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result; None, and the work is called off, if the event comes first."""
    task, stop = asyncio.create_task(work), asyncio.create_task(event.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return None
    return await task


async def retry_while_away(ask: Callable[[], T]) -> T:
    """Asks the queue again while it is away, for ten minutes."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await asyncio.to_thread(ask)
        except (QueueAwayError, NotReconciledError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
