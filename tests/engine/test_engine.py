"""The engine where its own limits cut requests into pieces."""

import asyncio

import numpy as np
import pytest

from service.engine.vllm import EngineMedia

pytestmark = pytest.mark.engine
PROMPTS, LENGTH = 24, 400


def test_seeded_prompts_in_pieces_are_answered_as_those_in_one_piece(engine_thread) -> None:
    """Together they are more than twice what a step takes; each alone fits."""
    engine = engine_thread.engine
    assert 2 * engine.settings.max_num_batched_tokens < PROMPTS * LENGTH
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, LENGTH).tolist() for _ in range(PROMPTS)]

    async def answer(number: int):
        _, (sampled,) = await engine.generate(
            prompts[number],
            EngineMedia(),
            None,
            n=1,
            temperature=1,
            top_p=1,
            max_tokens=8,
            top_k=0,
            seed=number,
            stop=[],
        )
        return sampled.token_ids

    async def together():
        return await asyncio.gather(*(answer(number) for number in range(PROMPTS)))

    async def alone():
        return [await answer(number) for number in range(PROMPTS)]

    first, then = engine_thread.run(together()), engine_thread.run(alone())
    assert sum(a == b for a, b in zip(first, then, strict=True)) >= PROMPTS - 2  # near-ties fall either way
