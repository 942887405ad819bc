"""A step that takes longer than its time, and calls that are too slow: both cost attempts, and a person sees them."""

import asyncio
from typing import cast

import pytest

from adapters.errors import UserError
from clients.client import ServiceError
from clients.retries import error_of
from tests.trainer.orchestration.test_scheduler import enqueue, kinds, run_of, schedule
from trainer.loop import Batch, StepContext
from trainer.orchestration.deadline import in_time
from trainer.orchestration.scheduler import StepScheduler
from trainer.plan.steps import Step
from trainer.queue.client import ATTEMPTS, Queue

TOO_LONG = Step("text", 1)


async def for_ever(step: Step, context: StepContext) -> Batch:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_step_that_takes_too_long_is_an_error_with_its_remedy() -> None:
    gather = in_time(for_ever, hours=0.01 / 3600)
    with pytest.raises(UserError, match=r"not there after .* h \(budget.step_hours\); take a faster engine, or lower"):
        asyncio.run(gather(TOO_LONG, cast(StepContext, None)))


def test_a_step_in_its_time_is_what_it_was() -> None:
    batch = cast(Batch, object())

    async def gather(step: Step, context: StepContext) -> Batch:
        return batch

    assert asyncio.run(in_time(gather, hours=1)(TOO_LONG, cast(StepContext, None))) is batch


@pytest.mark.parametrize(
    "error",
    [
        ServiceError("too-slow", None, "no answer within 600 s"),
        ServiceError("too-slow", 504, "the engine did not end the request"),
        ServiceError("busy", 429, "no room; gave up after 600 s"),
        ServiceError("internal", 500, "the service failed"),
        None,
    ],
    ids=["no answer", "engine", "busy", "failed", "whole step"],
)
def test_a_step_that_never_gets_done_ends_its_job(queue: Queue, error: ServiceError | None) -> None:
    run = run_of("budget.prefetch=0")
    enqueue(queue, run)

    async def gather(step: Step, context: StepContext) -> Batch:
        if error is not None:
            raise error
        return await in_time(for_ever, hours=0.01 / 3600)(step, context)

    async def stop_when_dead(scheduler: StepScheduler) -> None:
        while not await asyncio.to_thread(queue.dead):
            await asyncio.sleep(0.05)
        scheduler.stop()

    schedule(queue, run, ["text"], gather, stop_when_dead)
    (dead,) = queue.dead()
    assert (str(error) if error else "budget.step_hours") in dead.error
    assert [event["dead"] for event in kinds(queue, "failed")] == [False] * (ATTEMPTS - 1) + [True]


@pytest.mark.parametrize("error", [error_of("no-answer", None, "refused"), ServiceError("not-ready", 503, "starting")])
def test_a_service_that_is_away_costs_no_attempt(queue: Queue, error: ServiceError) -> None:
    run = run_of()
    enqueue(queue, run)

    async def gather(step: Step, context: StepContext) -> Batch:
        raise error

    with pytest.raises(ServiceError):
        schedule(queue, run, ["text"], gather)
    assert kinds(queue, "failed") == []
