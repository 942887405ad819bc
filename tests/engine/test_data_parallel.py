"""Two cores behind one client: both score as PEFT does, hold the same adapters, and share no prompt between them."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from adapters.base import locate
from service.engine.finite import NotFiniteError
from service.engine.vllm import EngineDiedError, EngineMedia
from tests.adapters.files import write_adapter
from tests.engine.conftest import EngineThread
from tests.engine.test_engine import LENGTH, PROMPTS, answers_together
from tests.engine.test_scores import CASES, random_ids

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CORES = (0, 1)
NAMES = ("thin", "base", "strong")
EXPANDED = {"temperature": 0, "top_p": 1, "max_tokens": 1, "top_k": 0, "seed": None, "stop": []}


@pytest.fixture(scope="module")
def pair() -> Iterator[EngineThread]:
    thread = EngineThread("float32", locate("miniature"), data_parallel=2)
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def held(pair: EngineThread, adapter_folders) -> dict:
    """The adapters in both cores; None is the base."""
    names = [name for name in NAMES if name != "base"]
    return {name: pair.run(pair.engine.load(f"{name}@1", adapter_folders[name])) for name in names} | {"base": None}


@pytest.mark.parametrize("case", ["text", "image", "video", "image and video"])
def test_both_cores_score_as_peft_does_in_a_mixed_batch(
    case: str, pair, held, reference, engine_thread, loaded
) -> None:
    messages, media = CASES[case]
    engine = pair.engine
    prompt, completion = engine.chat_ids(messages), random_ids(33, 1)

    async def scores(engine, adapters, cores):
        pairs = [(name, core) for name in NAMES for core in cores]
        rows = [engine.score(prompt, media, completion, adapters[name], core=core) for name, core in pairs]
        return {key: row.logprobs_C for key, row in zip(pairs, await asyncio.gather(*rows), strict=True)}

    by_core, single = (
        pair.run(scores(engine, held, CORES)),
        engine_thread.run(scores(engine_thread.engine, loaded, [0])),
    )
    expanded, _ = pair.run(engine.generate(prompt, media, None, n=1, **EXPANDED))
    for (name, core), logprobs_C in by_core.items():
        expected_CV = reference.logprobs(name, [*expanded, *completion], len(completion), media)
        expected_C = expected_CV[torch.arange(len(completion)), torch.tensor(completion)].numpy()
        np.testing.assert_allclose(logprobs_C, expected_C, atol=1e-3, err_msg=f"{name} on core {core}")
        np.testing.assert_allclose(logprobs_C, single[name, 0], atol=1e-4, err_msg=f"{name} on core {core}")


def test_what_shares_a_prompt_meets_one_cache(pair, held) -> None:
    """Asked again, a core that has the sequence reads too far into its cache and says so; another would not."""
    engine = pair.engine
    cores = set()
    for seed in range(8):
        prompt, completion = random_ids(96, 50 + seed), random_ids(40, 90 + seed)
        cores.add(engine._cores.of(prompt, []))
        first, again = (pair.run(engine.score(prompt, EngineMedia(), completion, held["strong"])) for _ in range(2))
        assert (first.rescored, again.rescored) == (False, True)
    assert cores == set(CORES)


def test_seeded_prompts_in_pieces_are_answered_as_by_a_single_core(pair, engine_thread) -> None:
    """More than each core takes in a step: what is mended on CPU is mended in both."""
    count = 2 * PROMPTS
    assert 2 * len(CORES) * pair.engine.settings.max_num_batched_tokens < count * LENGTH
    by_pair, single = answers_together(pair, count), answers_together(engine_thread, count)
    assert sum(a == b for a, b in zip(by_pair, single, strict=True)) >= count - 4  # near-ties fall either way


def test_numbers_that_overflow_stay_within_their_request_on_both_cores(pair, held, tmp_path) -> None:
    engine = pair.engine
    huge = pair.run(engine.load("huge@1", write_adapter(tmp_path, 1e30, rank=8)))
    for core in CORES:
        prompt, completion = random_ids(40, 200 + core), random_ids(30, 300 + core)
        before = pair.run(engine.score(prompt, EngineMedia(), completion, held["thin"], cached=False, core=core))
        for _ in range(3):
            with pytest.raises(NotFiniteError):
                pair.run(engine.score(random_ids(90, 7), EngineMedia(), random_ids(90, 8), huge, core=core))
        after = pair.run(engine.score(prompt, EngineMedia(), completion, held["thin"], cached=False, core=core))
        np.testing.assert_allclose(after.logprobs_C, before.logprobs_C, atol=1e-4)
    pair.run(engine.unload(huge))


def test_an_adapter_reaches_both_cores_and_leaves_both(pair, adapter_folders) -> None:
    cores = pair.engine._client.engine_core

    def numbers() -> list[set[int]]:
        return [set(held) for held in pair.run(cores.call_utility_all_async("list_loras"))]

    before = numbers()
    adapter = pair.run(pair.engine.load("plain@1", adapter_folders["plain"]))
    assert numbers() == [held | {adapter.number} for held in before]
    pair.run(pair.engine.unload(adapter))
    assert numbers() == before


def test_when_a_core_dies_neither_takes_what_it_has_for_an_answer(pair) -> None:
    """The last test: vLLM ends the other core too, which then tells half of what was asked for."""
    engine = pair.engine
    pair.run(engine.ping())
    assert (engine.silent, engine.dead) == ("", None)
    prompts = [random_ids(40, 400 + seed) for seed in range(12)]
    assert {engine._cores.of(prompt, []) for prompt in prompts} == set(CORES)
    sampling = {"temperature": 1, "top_p": 1, "max_tokens": 460, "top_k": 0, "stop": []}
    core = engine._client.engine_core.resources.engine_manager.processes[1]

    async def killed() -> list:
        answers = [engine.generate(prompt, EngineMedia(), None, n=4, seed=7, **sampling) for prompt in prompts]
        tasks = [asyncio.create_task(answer) for answer in answers]
        await asyncio.sleep(0.2)  # most answers take a second
        core.kill()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cores = set()
    for prompt, answer in zip(prompts, pair.run(killed()), strict=True):
        if isinstance(answer, EngineDiedError):
            cores.add(engine._cores.of(prompt, []))
        else:  # it had ended by itself
            assert {completion.finish_reason for completion in answer[1]} == {"stop"}
    assert cores == set(CORES)
    assert engine.dead == "the engine is dead: core 1 of 0 to 1"
