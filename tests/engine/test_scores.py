"""The engine's log-probabilities are those of transformers and PEFT, for every adapter of a mixed batch."""

import asyncio
import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adapters.base import locate
from service.engine.vllm import EngineMedia
from service.media import Video
from tests.engine.conftest import EngineThread
from tests.engine.reference import Reference
from tests.engine.test_miniature import media_of
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.question import questions

pytestmark = pytest.mark.engine
NAMES = ("thin", "base", "plain", "strong")


def picture(seed: int, height: int = 64, width: int = 96) -> tuple[str, Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return f"image-{seed}-{height}-{width}", Image.fromarray(pixels)


def clip(seed: int, frames: int) -> tuple[str, Video]:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 32, 64, 3), np.uint8)
    return f"video-{seed}-{frames}", Video(pixels, tuple(range(frames)), frames, 2.0)


def user(*parts: str) -> list[dict]:
    content = [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


CASES = {
    "text": (user("37+2*4?"), EngineMedia()),
    "image": (user("image", "37+red?"), EngineMedia(images=(picture(1),))),
    "two images": (user("image", "and", "image", "which?"), EngineMedia(images=(picture(2), picture(3, 96, 32)))),
    "video": (user("video", "37-left?"), EngineMedia(videos=(clip(4, 12),))),
    "odd frames": (user("video", "37-left?"), EngineMedia(videos=(clip(5, 7),))),
    "text around two videos": (
        user("before", "video", "between", "video", "after"),
        EngineMedia(videos=(clip(6, 4), clip(7, 5))),
    ),
    "image and video": (user("image", "video", "?"), EngineMedia(images=(picture(8),), videos=(clip(9, 3),))),
}


def random_ids(count: int, seed: int) -> list[int]:
    """Ordinary tokens: bytes."""
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(count)]


def differences(
    thread: EngineThread,
    reference: Reference,
    loaded: Mapping[str, Any],
    prompt: list[int],
    media: EngineMedia,
    completions: Sequence[Sequence[int]],
    top_atol: float = 1e-3,
) -> np.ndarray:
    """|engine - reference| of every token of the completions, all adapters in one batch."""

    async def score():
        return await asyncio.gather(
            *(
                thread.engine.score(prompt, media, completion, loaded[name], top_k=2)
                for completion in completions
                for name in NAMES
            )
        )

    scores = thread.run(score())
    errors = []
    for (completion, name), score in zip(itertools.product(completions, NAMES), scores, strict=True):
        expanded, _ = thread.run(
            thread.engine.generate(
                prompt, media, None, n=1, temperature=0, top_p=1, max_tokens=1, top_k=0, seed=None, stop=[]
            )
        )
        assert score.prompt_tokens == len(expanded)
        expected_CV = reference.logprobs(name, [*expanded, *completion], len(completion), media)
        expected_C = expected_CV[torch.arange(len(completion)), torch.tensor(completion)]
        errors.append(np.abs(score.logprobs_C - expected_C.numpy()))
        likeliest = expected_CV.topk(2).values.numpy()
        np.testing.assert_allclose(score.logprobs_Ck, likeliest, atol=top_atol)
    return np.concatenate(errors)


@pytest.mark.parametrize("case", CASES)
def test_every_adapter_and_the_base_in_one_batch(case: str, engine_thread, reference, loaded) -> None:
    messages, media = CASES[case]
    prompt = engine_thread.engine.chat_ids(messages)
    completions = [random_ids(count, seed) for seed, count in enumerate((1, 17, 40))]
    errors = differences(engine_thread, reference, loaded, prompt, media, completions)
    assert errors.max() < 1e-3
    assert errors.mean() < 1e-5


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65])
def test_prompts_at_the_edges_of_cache_blocks(length: int, engine_thread, reference, loaded) -> None:
    prompt = random_ids(length, 100 + length)
    errors = differences(engine_thread, reference, loaded, prompt, EngineMedia(), [random_ids(9, 7), random_ids(33, 8)])
    assert errors.max() < 1e-3
    assert errors.mean() < 1e-5


def test_a_sequence_scored_again_and_adapters_in_turn_give_the_same(engine_thread, reference, loaded) -> None:
    engine, prompt, completion = engine_thread.engine, random_ids(64, 1), random_ids(32, 2)
    for name in ("thin", "strong", "thin", "thin", "base", "thin"):
        score = engine_thread.run(engine.score(prompt, EngineMedia(), completion, loaded[name]))
        expected = reference.logprobs(name, [*prompt, *completion], 32, EngineMedia())[torch.arange(32), completion]
        np.testing.assert_allclose(score.logprobs_C, expected.numpy(), atol=1e-3)


def test_a_cache_that_swallowed_rows_is_noticed(engine_thread, loaded) -> None:
    """Without the second pass these rows are uninitialised memory, and no error says so."""
    engine, prompt, completion = engine_thread.engine, random_ids(96, 3), random_ids(40, 4)
    first = engine_thread.run(engine.score(prompt, EngineMedia(), completion, loaded["plain"]))
    again = engine_thread.run(engine.score(prompt, EngineMedia(), completion, loaded["plain"]))
    assert (first.rescored, again.rescored) == (False, True)
    np.testing.assert_allclose(first.logprobs_C, again.logprobs_C, atol=1e-4)


def test_what_an_adapter_has_sampled_it_scores_at_once(engine_thread, loaded) -> None:
    """Blocks that sampling left in the cache reach into the completion; scoring must not meet them."""
    engine, prompt = engine_thread.engine, random_ids(70, 11)
    sampling = {"temperature": 1, "top_p": 1, "max_tokens": 100, "top_k": 0, "seed": 3, "stop": []}
    _, completions = engine_thread.run(engine.generate(prompt, EngineMedia(), loaded["strong"], n=4, **sampling))
    assert max(len(completion.token_ids) for completion in completions) > 32
    for completion in completions:
        score = engine_thread.run(engine.score(prompt, EngineMedia(), completion.token_ids, loaded["strong"]))
        assert not score.rescored
        np.testing.assert_allclose(score.logprobs_C, completion.logprobs_C, atol=1e-3)


def test_a_completion_up_to_the_models_length(engine_thread, reference, loaded) -> None:
    prompt, completion = random_ids(11, 5), random_ids(500, 6)
    errors = differences(engine_thread, reference, loaded, prompt, EngineMedia(), [completion])
    assert errors.max() < 1e-3


def test_fixed_token_ids_are_scored_at_their_positions(engine_thread, reference, loaded) -> None:
    prompt, completion = random_ids(20, 9), random_ids(5, 10)
    wanted = [random_ids(3, 20 + position) for position in range(5)]
    score = engine_thread.run(
        engine_thread.engine.score(prompt, EngineMedia(), completion, loaded["strong"], token_ids=wanted)
    )
    expected_CV = reference.logprobs("strong", [*prompt, *completion], 5, EngineMedia())
    assert score.ids_Ck.tolist() == wanted
    np.testing.assert_allclose(score.logprobs_Ck, expected_CV.gather(1, torch.tensor(wanted)).numpy(), atol=1e-3)


def test_samples_carry_the_scores_of_their_own_tokens(engine_thread, loaded) -> None:
    engine = engine_thread.engine
    question = next(questions(CAPABILITIES["image"], "test", 0, 2))
    media = EngineMedia(images=(("one", Image.fromarray(question.scene.render()[0])),))
    prompt = engine.chat_ids(user("image", question.text))
    _, completions = engine_thread.run(
        engine.generate(
            prompt, media, loaded["thin"], n=4, temperature=1, top_p=1, max_tokens=40, top_k=0, seed=3, stop=[]
        )
    )
    for completion in completions:
        assert not set(completion.token_ids) & engine.special_ids
        score = engine_thread.run(engine.score(prompt, media, completion.token_ids, loaded["thin"]))
        np.testing.assert_allclose(score.logprobs_C, completion.logprobs_C, atol=1e-3)


def test_adapters_differ_from_each_other_and_from_the_base(engine_thread, loaded) -> None:
    prompt, completion = random_ids(20, 11), random_ids(30, 12)
    rows = [engine_thread.run(engine_thread.engine.score(prompt, EngineMedia(), completion, loaded[n])) for n in NAMES]
    for first, second in itertools.combinations(rows, 2):
        assert np.abs(first.logprobs_C - second.logprobs_C).max() > 0.1


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # vLLM leaves its sockets to the collector
def test_bfloat16_stays_near(reference, adapter_folders) -> None:
    """On what is scored in practice: the answers that the model gives to its questions."""
    thread = EngineThread("bfloat16", locate("miniature"))
    engine = thread.engine
    loaded = {name: thread.run(engine.load(f"{name}@1", path)) for name, path in adapter_folders.items()}
    errors = []
    for name, question in itertools.product(("text", "image", "video"), range(3)):
        drawn = next(itertools.islice(questions(CAPABILITIES[name], "test", 0), question, None))
        media = media_of(drawn)
        prompt = engine.chat_ids(user(*([] if name == "text" else [name]), drawn.text))
        _, answers = thread.run(
            engine.generate(prompt, media, None, n=2, temperature=1, top_p=1, max_tokens=40, top_k=0, seed=1, stop=[])
        )
        completions = [list(answer.token_ids) for answer in answers]
        errors.append(differences(thread, reference, loaded | {"base": None}, prompt, media, completions, top_atol=1.0))
    del engine
    thread.close()
    assert np.concatenate(errors).max() < 0.05
    assert np.concatenate(errors).mean() < 0.006
