"""The engine where its own limits cut requests into pieces."""

import asyncio

import numpy as np
import pytest

from service.engine.vllm import URGENT, EngineMedia
from tests.engine.conftest import EngineThread

pytestmark = pytest.mark.engine
PROMPTS, LENGTH = 24, 400


async def _answer(thread: EngineThread, number: int) -> tuple[int, ...]:
    prompt = np.random.default_rng(number).integers(0, 256, LENGTH).tolist()
    sampling = {"temperature": 1, "top_p": 1, "max_tokens": 8, "top_k": 0, "stop": []}
    _, (sampled,) = await thread.engine.generate(prompt, EngineMedia(), None, n=1, seed=number, **sampling)
    return sampled.token_ids


def answers_together(thread: EngineThread, count: int) -> list[tuple[int, ...]]:
    """Answers to prompts whose number is their seed, all at once."""

    async def together():
        return await asyncio.gather(*(_answer(thread, number) for number in range(count)))

    return thread.run(together())


def test_seeded_prompts_in_pieces_are_answered_as_those_in_one_piece(engine_thread) -> None:
    """Together they are more than twice what a step takes; each alone fits."""
    assert 2 * engine_thread.engine.settings.max_num_batched_tokens < PROMPTS * LENGTH
    first = answers_together(engine_thread, PROMPTS)
    then = [engine_thread.run(_answer(engine_thread, number)) for number in range(PROMPTS)]
    assert sum(a == b for a, b in zip(first, then, strict=True)) >= PROMPTS - 2  # near-ties fall either way


def test_what_a_publish_waits_for_goes_before_scores_that_came_earlier(engine_thread) -> None:
    async def score(number: int, priority: int = 0) -> None:
        tokens = np.random.default_rng(number).integers(0, 256, LENGTH).tolist()
        await engine_thread.engine.score(tokens[:-8], EngineMedia(), tokens[-8:], None, priority=priority)

    async def done_before_the_urgent_score() -> int:
        # Six steps of the engine; all of them have arrived when the first step is over.
        scores = [asyncio.create_task(score(number)) for number in range(60)]
        await asyncio.wait(scores, return_when=asyncio.FIRST_COMPLETED)
        await score(60, priority=URGENT)
        done = sum(task.done() for task in scores)
        await asyncio.gather(*scores)
        return done

    # In the order of arrival it would be all of them, or all but those of its own step.
    assert engine_thread.run(done_before_the_urgent_score()) <= 40
