"""The time that a step's rollouts and scores may take: each call has its own, but a step is hundreds of them."""

import asyncio

from adapters.errors import UserError
from trainer.loop import Batch, Gather, StepContext
from trainer.plan.steps import Step


def in_time(gather: Gather, hours: float) -> Gather:
    """`gather`, which fails when it takes longer: else a step that no engine can make would be tried for ever."""

    async def gather_in_time(step: Step, context: StepContext) -> Batch:
        try:
            async with asyncio.timeout(3600 * hours):
                return await gather(step, context)
        except TimeoutError:
            raise UserError(
                f"its rollouts and scores were not there after {hours:g} h (budget.step_hours); take a faster engine, "
                "or lower rollout.prompts or rollout.max_completion_tokens"
            ) from None

    return gather_in_time
