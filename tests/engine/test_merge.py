"""A merged checkpoint in real vLLM answers as the base with the stacked adapter does."""

import asyncio

import numpy as np
import pytest

from adapters.base import locate
from adapters.merge import fold, make_merge_plan, write_adapter
from adapters.merge_inputs import open_base, open_folder
from service.engine.vllm import EngineMedia
from tests.engine.conftest import EngineThread
from tests.engine.test_scores import picture, random_ids, user

pytestmark = pytest.mark.engine


def test_the_checkpoint_and_the_stacked_adapter_score_alike(engine_thread, adapter_folders, tmp_path) -> None:
    base = open_base(locate("miniature"), "miniature")
    branches = [open_folder(adapter_folders[name], base, name) for name in ("thin", "plain")]
    merge_plan = make_merge_plan(branches, {"thin": 2, "plain": 1}, scale=1.5)
    fold(base, merge_plan, tmp_path / "merged")
    write_adapter(base, merge_plan, tmp_path / "stacked")
    stacked = engine_thread.run(engine_thread.engine.load("stacked@1", tmp_path / "stacked"))
    prompts = [
        (engine_thread.engine.chat_ids(user("37+2*4?")), EngineMedia()),
        (engine_thread.engine.chat_ids(user("image", "37+red?")), EngineMedia(images=(picture(1),))),
    ]
    merged = EngineThread("float32", tmp_path / "merged")
    try:
        scores_merged = scores(merged, None, prompts)
    finally:
        merged.close()
    expected, untouched = scores(engine_thread, stacked, prompts), scores(engine_thread, None, prompts)
    assert np.abs(scores_merged - expected).max() < 0.05  # the checkpoint's weights are bfloat16, the adapter's are not
    assert np.abs(untouched - expected).mean() > 20 * np.abs(scores_merged - expected).mean()


def scores(thread, adapter, prompts) -> np.ndarray:
    async def score():
        return await asyncio.gather(
            *(thread.engine.score(ids, media, random_ids(60, 4), adapter) for ids, media in prompts)
        )

    return np.concatenate([scored.logprobs_C for scored in thread.run(score())])
