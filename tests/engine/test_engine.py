"""The engine where its own limits cut requests into pieces."""

import asyncio

import numpy as np
import pytest

from service.engine.vllm import EngineMedia
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
