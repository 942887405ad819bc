"""What one worker does: takes branches, makes their steps as they become ready, gives them back.

A step is ready when every revision that it names is published. Of several branches any ready step is made, first that
of the branch with the most to go, which would be left alone at the end. While one branch learns, others' rollouts and
scores are already made: `budget.prefetch` of them. None of this changes what a step draws or reads: the plan names it.
Numbers of the engine may round otherwise, since other requests share its batches.

What a step computes is `loop.train_step`; leases, timings, faults and cancellation are hooks around it.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from structlog.contextvars import bind_contextvars, unbind_contextvars

from adapters.errors import UserError
from adapters.names import Ref
from clients.client import ServiceError
from service.concurrency import Stopped, cancelled_by
from service.faults import fault
from service.tracing import span
from trainer.loop import NATIVE, Batch, Gather, StepContext, StepResult, gather_batch, train_step
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.replay import keep_record
from trainer.orchestration.watchdog import Watchdog
from trainer.plan.bounds import kept_rollouts
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided
from trainer.plan.steps import Plan, Step, is_there
from trainer.queue.client import Lease, NotReconciledError, Queue, QueueAwayError, Refusal
from trainer.recipe import Recipe
from trainer.reporting.unrewarded import unrewarded
from trainer.rollout.metrics import warnings
from trainer.update.learner import Learner

AWAY_S = 600.0
"""How long a queue may be away. A server that is restarted or moved is back by then; after it the worker ends with a
status that starts it again."""
LOOK_S = 2.0
"""Between two looks when no news comes. News come at once: this is for those that were lost with a server."""
MAX_SKIPPED = 3
"""Skipped steps in a row that end a job. One can be bad luck with a batch; three are a learning rate or a reward."""
LOST = frozenset({"fenced", "stale-parent", "revision-exists"})
"""What the service says to a publisher whose branch went to another worker."""

T = TypeVar("T")

log = logging.getLogger("worker")


class LeaseLostError(Exception):
    """The branch is another worker's by now, so what would be learnt could not be published."""


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
        heartbeat: Heartbeat,
        watchdog: Watchdog,
        context: StepContext,
        learner: Learner,
        gather: Gather = gather_batch,
    ) -> None:
        self._run = run
        self._name = name
        self._queue, self._heartbeat, self._watchdog = queue, heartbeat, watchdog
        self._context, self._learner, self._gather = context, learner, gather
        # An adaptive rhythm moves the phases within a plan; where each branch ends is the same in all of them.
        self._ends = {branch: run.plan.head(branch) for branch in branches}
        self._use_plan(run.plan)
        # By branch, not by step: the steps of a branch follow each other, so it has one under way at most.
        self._under_way: set[str] = set()
        self._skipped: dict[str, int] = {}
        self._keep = kept_rollouts(run.plan, run.recipe).steps
        self._namesakes: set[str] = set()
        """Branches that another worker of this name had: a person is told once."""
        self._stopping = asyncio.Event()
        self._looking, self._learning = asyncio.Lock(), asyncio.Lock()

    def _use_plan(self, plan: Plan) -> None:
        steps = [step for step in plan.steps if step.branch in self._ends]
        self._steps = {step.makes: step for step in steps}
        self._order = {step.makes: index for index, step in enumerate(steps)}

    def stop(self) -> None:
        """After the update under way."""
        self._stopping.set()
        self._heartbeat.wake()

    async def run(self) -> None:
        """Works until the plan is done for this worker's branches, or it is told to stop."""
        # One task learns while the others gather; `prefetch` says how many gather at a time.
        # Each takes a step from beginning to end, so a step's state lives in one place, on one stack.
        tasks = [asyncio.create_task(self._make_steps()) for _ in range(1 + self._run.recipe.budget.prefetch)]
        try:
            await asyncio.wait(tasks)
        finally:
            for lease in self._heartbeat.leases.values():
                await self._give_back(lease)
        # Raised once every lease is given back. Several can have failed alike; the first stands for them.
        failures = [error for task in tasks if (error := task.exception()) is not None]
        if failures:
            raise failures[0]

    async def _make_steps(self) -> None:
        """A step at a time, from its rollouts to its revision."""
        try:
            while (assignment := await self._next_step()) is not None:
                step, lease = assignment
                bind_contextvars(branch=step.branch, step=step.number)
                seconds: dict[str, float] = {}
                try:
                    with span("step", run=self._run.id, branch=step.branch, step=step.number, revision=str(step.makes)):
                        result = await train_step(
                            step,
                            self._context,
                            self._learner,
                            gather=partial(self._gather_unless_stopped, seconds=seconds),
                            slot=partial(self._learning_slot, step, lease, seconds),
                            lease=lease,
                        )
                        is_ours = await self._report(step, lease, result, seconds)
                except (Stopped, LeaseLostError):
                    pass  # nothing was learnt, and the branch is given back or another's
                except Exception as error:
                    await self._handle(error, step, lease)
                else:
                    if is_ours and step.number == lease.job.last and self._heartbeat.holds(lease):
                        await self._claim_next_job(lease)
                finally:
                    self._watchdog.rest(step.branch)
                    self._under_way.discard(step.branch)
                    unbind_contextvars("branch", "step")
                    self._heartbeat.wake()
        except BaseException:
            self.stop()  # the other tasks must see this end
            raise

    # ---- hooks of a step ----

    async def _gather_unless_stopped(self, step: Step, context: StepContext, seconds: dict[str, float]) -> Batch:
        """Rollouts may be broken off, since nothing is lost with them; an update that has begun is finished."""
        began = time.monotonic()
        self._watchdog.begin(step, "rollouts")
        with span("gather"):
            batch = await cancelled_by(self._stopping, self._gather(step, context))
        self._watchdog.rest(step.branch)  # until its turn to learn comes: others are watched meanwhile
        seconds["gather"] = time.monotonic() - began
        return batch

    @asynccontextmanager
    async def _learning_slot(self, step: Step, lease: Lease, seconds: dict[str, float]) -> AsyncGenerator[None]:
        """One branch learns at a time: they share one copy of the base, and the device's memory."""
        async with self._learning:
            # Asked here and not before: while others learnt, the branch can have gone to another worker.
            if not self._heartbeat.holds(lease):
                raise LeaseLostError
            self._watchdog.begin(step, "update")
            fault(f"gathered:{step.makes}")
            began = time.monotonic()
            with span("learn"):
                yield
            seconds["learn"] = time.monotonic() - began
            self._watchdog.begin(step, "publishing")
            fault(f"learnt:{step.makes}")
        seconds["publish"] = -time.monotonic()  # until `_report`; another branch learns meanwhile

    async def _report(self, step: Step, lease: Lease, result: StepResult, seconds: dict[str, float]) -> bool:
        """Tells of a published step. False: another worker had published it before."""
        seconds["publish"] += time.monotonic()
        self._watchdog.rest(step.branch)
        fault(f"published:{step.makes}")
        # The service answers a second publish of the same bits with the first one's manifest. Its token is then not
        # ours: the branch is another's, which has told of the step as well.
        if result.manifest.token != lease.token:
            await self._lose(lease)
            return False
        metrics = {**result.batch.metrics, **result.update.metrics}
        await self._tell(
            "step",
            branch=step.branch,
            step=step.number,
            phase=lease.job.kind,
            job=lease.job.id,
            teachers=[str(teacher.ref) for teacher in step.teachers],
            skipped=result.update.skipped,
            metrics={name: value for name, value in metrics.items() if value == value},  # JSON has no NaN
            seconds=seconds,
            warnings=list(warnings(metrics)),
        )
        if step.number == 1 and NATIVE in result.batch.rollouts:
            rules = {name: training_set.rule for name, training_set in self._context.training_sets.items()}
            if text := unrewarded(step.branch, result.batch.rollouts[NATIVE], rules):
                log.warning("%s", text)
                await self._tell("unrewarded", branch=step.branch, step=step.number, text=text)
        try:  # after the event: people see the step at once
            await keep_record(self._context.client, self._run.id, step, result.batch, self._keep)
        except (ServiceError, OSError) as error:  # it is for people, and for `--replay`: the run goes on, but says so
            log.warning("%s: its rollouts were not kept: %s", step.makes, error)
            await self._tell("rollouts", branch=step.branch, step=step.number, error=f"not kept: {error}")
        if result.update.skipped is None:
            self._skipped[step.branch] = 0
            return True
        # In a row and in this process: a worker that is started again begins to count anew.
        count = self._skipped[step.branch] = self._skipped.get(step.branch, 0) + 1
        if count >= MAX_SKIPPED:
            self._skipped[step.branch] = 0
            reason = f"{MAX_SKIPPED} steps in a row were skipped, the last because {result.update.skipped}"
            await self._fail(step, lease, reason, fatal=True)
        return True

    async def _handle(self, error: Exception, step: Step, lease: Lease) -> None:
        """A failed step costs its job an attempt, unless the branch is another's already or the service is away."""
        if isinstance(error, ServiceError) and error.type in LOST:
            await self._lose(lease)
        elif isinstance(error, ServiceError) and error.is_away:
            raise error  # which is no fault of the job
        elif isinstance(error, UserError | ServiceError):  # a refusal, or a service that failed at this step
            await self._fail(step, lease, str(error))
        else:
            traceback.print_exception(error)
            await self._fail(step, lease, f"{type(error).__name__}: {error}")

    async def _fail(self, step: Step, lease: Lease, error: str, *, fatal: bool = False) -> None:
        log.error("%s: %s", step.makes, error)
        self._heartbeat.drop(lease)  # before it is given back: the thread must not renew what another may claim
        answer = await retry_while_away(lambda: self._queue.release(lease, error, fatal=fatal))
        await self._tell("failed", branch=step.branch, step=step.number, error=error, dead=answer == "dead")

    # ---- which step ----

    async def _next_step(self) -> tuple[Step, Lease] | None:
        """The next ready step of a branch that is ours, which is under way from now on; None at the end."""
        async with self._looking:  # one task at a time, or two would take the same step
            while not self._stopping.is_set():
                wait_s = LOOK_S
                try:
                    for lease in self._heartbeat.take_lost():
                        await self._lose(lease)
                    heads = await asyncio.to_thread(self._queue.heads)
                    # A step under way may still fail, and then there is more to do.
                    if not self._under_way and all(heads.get(branch, -1) >= end for branch, end in self._ends.items()):
                        return None
                    wait_s = await self._claim_free_branches(heads)
                    if ready := self._ready_steps(heads):
                        # The branch with the most steps to go first: it would be left alone at the end.
                        step, lease = min(
                            ready,
                            key=lambda pair: (pair[0].number - self._ends[pair[0].branch], self._order[pair[0].makes]),
                        )
                        self._under_way.add(step.branch)
                        return step, lease
                except NotReconciledError as error:
                    log.info("%s", error)
                except QueueAwayError:
                    pass  # the heartbeat has said so; what is under way goes on, what is ready waits
                await self._heartbeat.change(wait_s)
        return None

    async def _claim_free_branches(self, heads: Mapping[str, int]) -> float:
        """Claims what is nobody's, as far as we know, and has steps left; seconds until another look is worth it."""
        wait_s = LOOK_S
        leases = self._heartbeat.leases
        for branch, end in self._ends.items():
            if branch in leases or branch in self._under_way or heads.get(branch, -1) >= end:
                continue
            reply = await asyncio.to_thread(self._queue.claim, branch, self._name)
            if isinstance(reply, Refusal):
                # A job that is dead or not queued yet sends news when that changes.
                if reply.why == "held":  # its lease may run out before the next news: a dead worker sends none
                    wait_s = min(wait_s, max(0.05, reply.left_s + 0.02))
                    if reply.holder == self._name and branch not in self._namesakes:
                        self._namesakes.add(branch)
                        words = "%s: another %s has it, on another machine; waits for it, give each a --name of its own"
                        log.warning(words, branch, self._name)
                elif reply.why == "ahead":
                    text = "its jobs were for steps behind its next one; they are dropped, and queued anew in order"
                    log.warning("%s: %s", branch, text)
                    await self._tell("fell", branch=branch, text=text)
            elif reply.job.run != self._run.id:
                # Two runs may share a branch's name in one queue; the job of the other is for its own workers.
                await asyncio.to_thread(self._queue.release, reply)
            else:
                await self._hold(reply)
                fault(f"claimed:{branch}@{heads.get(branch, 0)}")
                await self._tell("lease", branch=branch, what="claimed", job=reply.job.id)
                wait_s = 0.0
        return wait_s

    def _ready_steps(self, heads: Mapping[str, int]) -> list[tuple[Step, Lease]]:
        """The next step of each job that is ours, where every revision that it names is published."""
        ready: list[tuple[Step, Lease]] = []
        for branch, lease in self._heartbeat.leases.items():
            number = heads.get(branch, -1) + 1
            # Beyond the job's last step the branch belongs to the next job, which has a token of its own.
            if branch not in self._under_way and lease.job.first < number <= lease.job.last:
                step = self._steps[Ref(branch, number)]
                if all(is_there(ref, heads) for ref in step.needs):
                    ready.append((step, lease))
        return ready

    # ---- leases ----

    async def _claim_next_job(self, lease: Lease) -> None:
        """At the end of a job: the branch's next one, under a token of its own, if there is one."""
        reply = await retry_while_away(lambda: self._queue.claim(lease.branch, self._name))
        if isinstance(reply, Lease) and reply.job.run == self._run.id:
            await self._hold(reply)
        elif self._heartbeat.holds(lease):
            await self._give_back(lease)

    async def _hold(self, lease: Lease) -> None:
        method = self._run.recipe.method
        if method.rhythm == "adaptive":
            # The steps of a job are decided before it is queued, so the plan that has them can be made now.
            agreed = await retry_while_away(lambda: self._queue.agreed(self._run.id))
            self._use_plan(make_plan(self._run.recipe, decided(agreed, method.rlvr_steps)))
        self._heartbeat.hold(lease)  # last: from here on `_ready_steps` looks its steps up in the plan

    async def _give_back(self, lease: Lease) -> None:
        self._heartbeat.drop(lease)
        try:
            await asyncio.to_thread(self._queue.release, lease)
            await self._tell("lease", branch=lease.branch, what="released", job=lease.job.id)
        except QueueAwayError:
            log.warning("%s: not released, the queue is away; it runs out by itself", lease.branch)

    async def _lose(self, lease: Lease) -> None:
        self._heartbeat.drop(lease)
        # Nothing to undo: what was learnt was never published, and `learner.prepare` brings the branch anew.
        log.warning("%s: its lease went to another worker; what was learnt since is dropped", lease.branch)
        await self._tell("lease", branch=lease.branch, what="lost", job=lease.job.id)

    async def _tell(self, kind: str, **content: Any) -> None:
        """Events are for people: a queue that is away loses them, and nothing else."""
        try:
            await asyncio.to_thread(partial(self._queue.tell, self._run.id, kind, worker=self._name, **content))
        except QueueAwayError:
            log.warning("not told, the queue is away: %s %s", kind, content.get("branch", ""))


async def retry_while_away(ask: Callable[[], T]) -> T:
    """Asks the queue again while it is away, for `AWAY_S`."""
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            return await asyncio.to_thread(ask)
        except (QueueAwayError, NotReconciledError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)
