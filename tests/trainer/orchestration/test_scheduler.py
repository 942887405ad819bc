"""Which step a worker makes next, and what becomes of a branch whose step fails: on a real queue server.

Rollouts end before anything is learnt here, so no engine and no policy are needed; whole steps are in `tests/faults`.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from adapters.errors import UserError
from adapters.names import Ref
from clients.client import ServiceError
from tests.faults.recipes import small
from trainer.loop import Batch, StepContext
from trainer.orchestration.coordinator import due
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.scheduler import Run, StepScheduler
from trainer.orchestration.watchdog import Patience, Watchdog
from trainer.plan.make import make_plan
from trainer.plan.steps import Step
from trainer.queue.client import ATTEMPTS, Job, Queue
from trainer.recipe import Recipe
from trainer.update.learner import Learner

Work = Callable[[StepScheduler], Coroutine[Any, Any, None]]


def run_of(*changes: str) -> Run:
    recipe: Recipe = small(*changes)
    return Run("run", recipe, make_plan(recipe))


def enqueue(queue: Queue, run: Run, **heads: int) -> None:
    """The jobs of a run whose branches are at these revisions, or at 0."""
    at = {start.branch: heads.get(start.branch, 0) for start in run.plan.starts}
    for branch, head in at.items():
        queue.advance(branch, head, None)
    for job in due(run.plan, run.id, at):
        queue.enqueue(job)


def schedule(queue: Queue, run: Run, branches: Sequence[str], gather: Any, work: Work | None = None) -> None:
    """A worker's scheduler from its start to its end, with `work` beside it."""

    async def main() -> None:
        heartbeat = Heartbeat(Queue(queue.url), "worker")
        heartbeat.start()
        # Not started: nothing hangs here. It is in tests/faults/test_workers.py.
        watchdog = Watchdog(queue, heartbeat, run.id, "worker", Patience.in_all(60), done=lambda: 0)
        scheduler = StepScheduler(
            run,
            branches,
            name="worker",
            queue=queue,
            heartbeat=heartbeat,
            watchdog=watchdog,
            context=cast(StepContext, None),  # of no use without a batch
            learner=cast(Learner, None),
            gather=gather,
        )
        try:
            await asyncio.gather(scheduler.run(), *([work(scheduler)] if work else []))
        finally:
            heartbeat.end()
            heartbeat.join()

    asyncio.run(asyncio.wait_for(main(), 60))


class Recorder:
    """Notes which steps are gathered, and never ends one."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.changed = asyncio.Event()

    async def gather(self, step: Step, context: StepContext) -> Batch:
        self.steps.append(step)
        self.changed.set()
        await asyncio.Event().wait()
        raise AssertionError

    def until(self, count: int) -> Work:
        """Stops the scheduler when so many steps are under way."""

        async def stop(scheduler: StepScheduler) -> None:
            while len(self.steps) < count:
                self.changed.clear()
                await self.changed.wait()
            await asyncio.sleep(0.2)  # one more would have begun by now
            scheduler.stop()

        return stop


def kinds(queue: Queue, kind: str) -> list[dict[str, Any]]:
    return [event for _, event in queue.events() if event["kind"] == kind]


def test_it_gathers_ahead_as_many_steps_as_the_budget_says(queue: Queue) -> None:
    run, recorder = run_of("budget.prefetch=1"), Recorder()
    enqueue(queue, run)
    schedule(queue, run, ["text", "image", "video"], recorder.gather, recorder.until(2))
    assert [step.makes for step in recorder.steps] == [Ref("text", 1), Ref("image", 1)]


def test_the_branch_with_the_most_steps_to_go_comes_first(queue: Queue) -> None:
    run, recorder = run_of("budget.prefetch=0"), Recorder()
    enqueue(queue, run, text=2, image=1, video=2)
    schedule(queue, run, ["text", "image", "video"], recorder.gather, recorder.until(1))
    assert [step.makes for step in recorder.steps] == [Ref("image", 2)]


def test_a_step_waits_for_the_revision_of_its_teacher(queue: Queue) -> None:
    """After two RLVR steps each, video learns from text: from text@2, which is not there yet."""
    run, recorder = run_of("budget.prefetch=2"), Recorder()
    enqueue(queue, run, text=1, video=2)
    step = next(step for step in run.plan.steps if step.makes == Ref("video", 3))
    assert Ref("text", 2) in step.needs

    async def publish_the_teacher(scheduler: StepScheduler) -> None:
        await asyncio.sleep(0.5)
        assert recorder.steps == []
        await asyncio.to_thread(queue.advance, "text", 2, None)
        await recorder.until(1)(scheduler)

    schedule(queue, run, ["video"], recorder.gather, publish_the_teacher)
    assert recorder.steps == [step]


def test_told_to_stop_it_gives_every_branch_back(queue: Queue) -> None:
    run, recorder = run_of("budget.prefetch=2"), Recorder()
    enqueue(queue, run)
    schedule(queue, run, ["text", "image"], recorder.gather, recorder.until(2))
    assert [waiting.worker for waiting in queue.waiting(["text", "image"]).values()] == [None, None]
    assert [event["what"] for event in kinds(queue, "lease")].count("released") == 2
    assert queue.dead() == []


def test_a_branch_of_another_run_is_not_taken(queue: Queue) -> None:
    run, recorder = run_of(), Recorder()
    queue.advance("text", 0, None)
    queue.enqueue(Job("other:text:0", "other", "text", "rlvr", 0, 2))

    async def stop_after_a_look(scheduler: StepScheduler) -> None:
        await asyncio.sleep(0.5)
        scheduler.stop()

    schedule(queue, run, ["text"], recorder.gather, stop_after_a_look)
    assert recorder.steps == []
    assert queue.waiting(["text"])["text"].worker is None


@pytest.mark.parametrize("error", [UserError("no such row"), KeyError("column")])
def test_a_step_that_always_fails_ends_its_job(queue: Queue, error: Exception) -> None:
    run, steps = run_of("budget.prefetch=0"), list[Step]()
    enqueue(queue, run)

    async def gather(step: Step, context: StepContext) -> Batch:
        steps.append(step)
        raise error

    async def stop_when_dead(scheduler: StepScheduler) -> None:
        while not await asyncio.to_thread(queue.dead):
            await asyncio.sleep(0.05)
        scheduler.stop()

    schedule(queue, run, ["text"], gather, stop_when_dead)
    assert len(steps) == ATTEMPTS
    (dead,) = queue.dead()
    assert str(error) in dead.error
    assert [event["dead"] for event in kinds(queue, "failed")] == [False] * (ATTEMPTS - 1) + [True]


def test_a_service_that_is_away_ends_the_worker_and_costs_no_attempt(queue: Queue) -> None:
    run = run_of()
    enqueue(queue, run)

    async def gather(step: Step, context: StepContext) -> Batch:
        raise ServiceError("unreachable", None, "the service does not answer")

    with pytest.raises(ServiceError, match="does not answer"):
        schedule(queue, run, ["text"], gather)
    assert kinds(queue, "failed") == []
    assert queue.waiting(["text"])["text"].worker is None


def test_a_plan_that_is_done_needs_no_worker(queue: Queue) -> None:
    run, recorder = run_of(), Recorder()
    enqueue(queue, run, text=run.plan.head("text"))
    schedule(queue, run, ["text"], recorder.gather)
    assert recorder.steps == []


def test_a_lost_lease_is_told_and_the_branch_dropped(queue: Queue) -> None:
    run, recorder = run_of("budget.prefetch=0"), Recorder()
    enqueue(queue, run)

    async def take_it_over(scheduler: StepScheduler) -> None:
        while not recorder.steps:
            await asyncio.sleep(0.05)
        # A second claim under the worker's name has a newer token, as after a restart elsewhere.
        await asyncio.to_thread(queue.claim, "text", "worker")
        await asyncio.sleep(0.2)
        scheduler.stop()

    schedule(queue, run, ["text"], recorder.gather, take_it_over)
    assert len(recorder.steps) == 1
