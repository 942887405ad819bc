"""One training step through the real service: what it reads, what it publishes, what it says of itself."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from adapters.base import locate
from adapters.manifest import OPTIMISER, WEIGHTS, base_digest
from adapters.names import Ref
from clients.client import AsyncClient, RefusedError
from tests.trainer.update.packs import with_advantage
from trainer.data.generated import prompts
from trainer.loop import StepContext, TrainingSet, gather_batch, publish, train_step
from trainer.parts import Completion, LossTerm, Rollout
from trainer.plan.steps import Step, Teacher
from trainer.recipe import LoraConfig, LossConfig, OptimiserConfig, RolloutConfig
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.metrics import warnings
from trainer.update.learner import Learner
from trainer.update.policy import load_policy
from trainer.update.ranks import joined
from trainer.update.update import advantages_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BASE = locate("miniature")


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(num_children=1) as pool:
        yield pool


def make_context(client: AsyncClient, pool: RewardPool, loss: LossConfig = LossConfig()) -> StepContext:  # noqa: B008
    decode = partial(AutoTokenizer.from_pretrained(BASE).decode, skip_special_tokens=True)
    data = {
        name: TrainingSet(prompts(name, label=name, split="train", size=64, seed=1), Rule("exact"), 60.0)
        for name in ("text", "image", "video")
    }
    return StepContext(
        client, pool, data, decode, 3, RolloutConfig(prompts=3, group_size=4, max_completion_tokens=40), loss
    )


def make_learner(**changes) -> Learner:
    settings = {
        "seed": 3,
        "lora": LoraConfig(rank=8, alpha=16),
        "loss": LossConfig(),
        "optimiser": OptimiserConfig(lr=1e-3),
    }
    policy = load_policy(BASE, dtype="float32")
    return Learner(policy, base=base_digest(BASE), budget=2048, **(settings | changes))


def test_steps_of_both_phases_end_in_revisions_that_say_their_origin(service, pool, tmp_path) -> None:
    async def run() -> None:
        async with AsyncClient(service.url, base=base_digest(BASE)) as client:
            context, learner = make_context(client, pool), make_learner()
            for branch in ("text", "image", "video"):
                await client.fork(branch, "base")
                first = await train_step(Step(branch, 1, capabilities=(branch,)), context, learner)
                assert first.update.skipped is None
                assert first.manifest.ref == Ref(branch, 1)
                assert first.update.metrics["native/mismatch"] < 0.01
                assert list(warnings({**first.batch.metrics, **first.update.metrics})) == []
            step = Step(
                "image", 2, ("image",), (Teacher(Ref("text", 1), "text", 1.0), Teacher(Ref("video", 1), "video", 2.0))
            )
            result = await train_step(step, context, learner)
            assert [term.name for term in result.batch.terms] == ["native", "text", "video"]
            assert result.manifest.meta["teachers"] == ["text@1", "video@1"]
            assert result.batch.metrics["text/self_delta"] < 0.01
            assert result.batch.metrics["text/delta_abs"] > 10 * result.batch.metrics["text/self_delta"]
            metrics = result.manifest.meta["metrics"]
            assert isinstance(metrics, dict)
            assert metrics.keys() >= {"native/reward", "text/gap", "video/grad_norm", "grad_norm"}
            assert set(result.manifest.files) >= {WEIGHTS, OPTIMISER}

    asyncio.run(run())


def test_a_step_made_again_draws_alike_and_is_equal_to_rounding(service, pool, tmp_path) -> None:
    """Alone, and with two other steps whose requests meet its own in the engine's batches."""

    async def run() -> None:
        async with AsyncClient(service.url, base=base_digest(BASE)) as client:
            context = make_context(client, pool)
            steps = [Step(f"again-{name}", 1, capabilities=(name,)) for name in ("text", "image", "video")]
            for step in steps:
                await client.fork(step.branch, "base")
            alone = await gather_batch(steps[0], context)
            beside, *_ = await asyncio.gather(*(gather_batch(step, context) for step in steps))
            equal = [0, 0]
            for first, second in zip(alone.rollouts["native"], beside.rollouts["native"], strict=True):
                assert first.prompt.id == second.prompt.id
                for a, b in zip(first.completions, second.completions, strict=True):
                    same = next((at for at, (x, y) in enumerate(zip(a.ids_C, b.ids_C, strict=False)) if x != y), None)
                    assert np.allclose(a.logprobs_C[:same], b.logprobs_C[:same], atol=1e-3)
                    equal[same is None] += 1
            assert equal[True] > equal[False], "rounding decides few tokens"

            # The same completions make the same weights, in any learner: what `--replay` rests on.
            weights = []
            for number in range(2):
                learner = make_learner()
                await learner.prepare(steps[0].parent, client)
                learner.learn(steps[0].branch, alone.terms)
                folder = tmp_path / str(number)
                folder.mkdir()
                learner.save(steps[0].branch, folder)
                weights.append((folder / WEIGHTS).read_bytes())
            assert weights[0] == weights[1]

    asyncio.run(run())


def test_a_step_with_a_temperature_of_its_own_samples_at_it(service, pool) -> None:
    async def run() -> None:
        async with AsyncClient(service.url) as client:
            context = make_context(client, pool)
            await client.fork("cold", "base")
            for temperature, answers in ((None, {2, 3, 4}), (0.01, {1})):
                batch = await gather_batch(Step("cold", 1, ("text",), temperature=temperature), context)
                # How many different answers the four of a prompt are.
                counts = {len({completion.text for completion in rollout.completions})
                          for rollout in batch.rollouts["native"]}  # fmt: skip
                assert counts & answers
                assert temperature is None or counts == answers

    asyncio.run(run())


def test_a_teacher_that_is_the_student_itself_teaches_nothing(service, pool) -> None:
    async def run() -> None:
        async with AsyncClient(service.url) as client:
            context, learner = make_context(client, pool), make_learner()
            await client.fork("narcissus", "base")
            step = Step("narcissus", 1, teachers=(Teacher(Ref("narcissus", 0), "image", 1.0),))
            result = await train_step(step, context, learner)
            assert result.update.metrics["grad_norm"] == 0
            (term,) = result.batch.terms
            assert not any(advantages_of(completion).any() for completion in completions_of(term))

    asyncio.run(run())


def test_a_teachers_likeliest_tokens_can_teach(service, pool) -> None:
    async def run() -> None:
        async with AsyncClient(service.url) as client:
            loss = LossConfig(teacher_signal="top-k", teacher_top_k=5)
            context, learner = make_context(client, pool, loss), make_learner(loss=loss)
            await client.fork("pupil", "base")
            await client.fork("master", "base")
            await train_step(Step("master", 1, capabilities=("text",)), context, learner)
            result = await train_step(
                Step("pupil", 1, teachers=(Teacher(Ref("master", 1), "text", 1.0),)), context, learner
            )
            (term,) = result.batch.terms
            top_ks = [completion.top_k for completion in completions_of(term)]
            assert {top_k.ids_Ck.shape[1] for top_k in top_ks if top_k is not None} == {5}
            assert None not in top_ks
            assert result.update.metrics["master-text/kl"] > 0
            assert result.update.metrics["grad_norm"] > 0

    asyncio.run(run())


def test_the_control_without_a_teacher_pushes_unlikely_tokens_down(service, pool) -> None:
    async def run() -> None:
        async with AsyncClient(service.url) as client:
            context = make_context(client, pool)
            await client.fork("control", "base")
            batch = await gather_batch(Step("control", 1, negative=("text",)), context)
            (term,) = batch.terms
            for completion in completions_of(term):
                unlikely_C = completion.logprobs_C < np.log(0.1)
                expected_C = np.where(unlikely_C, np.float32(-0.1), np.float32(0))
                assert np.array_equal(advantages_of(completion), expected_C)

    asyncio.run(run())


def test_a_step_that_is_skipped_publishes_the_weights_of_its_parent(service, pool, tmp_path) -> None:
    async def run() -> None:
        async with AsyncClient(service.url) as client:
            context, learner = make_context(client, pool), make_learner()
            await client.fork("lame", "base")
            await train_step(Step("lame", 1, capabilities=("text",)), context, learner)
            step = Step("lame", 2, capabilities=("text",))
            batch = await gather_batch(step, context)
            broken = LossTerm("native", tuple(without_numbers(rollout) for rollout in batch.terms[0].rollouts))
            await learner.prepare(step.parent, client)
            update = learner.learn("lame", [broken])
            assert update.skipped
            manifest = await publish(step, context, learner, batch, update)
            assert manifest.meta["skipped"] == update.skipped
            files = [await client.download("lame", r, WEIGHTS, tmp_path / str(r)) for r in (1, 2)]
            assert files[0].read_bytes() == files[1].read_bytes()

    asyncio.run(run())


def completions_of(term: LossTerm) -> list[Completion]:
    return [completion for rollout in term.rollouts for completion in rollout.completions]


def without_numbers(rollout: Rollout) -> Rollout:
    return rollout.only(with_advantage(completion, np.nan) for completion in rollout.completions)


def test_what_was_learnt_but_not_published_is_forgotten(service, pool) -> None:
    """The publish of a step that was made twice is refused, and the next step starts from what is in the store."""

    async def run() -> None:
        async with AsyncClient(service.url) as client:
            context, learner, rival = (
                make_context(client, pool),
                make_learner(),
                make_learner(optimiser=OptimiserConfig(lr=5e-3)),
            )
            await client.fork("twice", "base")
            step = Step("twice", 1, capabilities=("text",))
            await train_step(step, context, rival)
            with pytest.raises(RefusedError, match="revision-exists"):
                await train_step(step, context, learner)
            result = await train_step(Step("twice", 2, capabilities=("text",)), context, learner)
            assert result.update.metrics["native/mismatch"] < 0.01

    asyncio.run(run())


def test_two_processes_train_through_one_and_stay_equal(service, pool, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "--module",
        __name__,
    ]
    result = subprocess.run([*command, service.url, str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(tmp_path / str(rank) / WEIGHTS) for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(values.any() for key, values in first.items() if "lora_B" in key)


def ranks_main(url: str, folder: Path) -> None:
    with joined() as ranks:
        learner = make_learner(ranks=ranks)
        if ranks.leads:
            asyncio.run(lead(url, learner))
        else:
            learner.follow()
        (folder / str(ranks.rank)).mkdir()
        learner.save("pair", folder / str(ranks.rank))


async def lead(url: str, learner: Learner) -> None:
    with RewardPool(num_children=1) as pool:
        async with AsyncClient(url) as client:
            context = make_context(client, pool)
            await client.fork("pair", "base")
            for number in (1, 2):
                await train_step(Step("pair", number, capabilities=("image",)), context, learner)
    learner.stop()


if __name__ == "__main__":
    ranks_main(sys.argv[1], Path(sys.argv[2]))
