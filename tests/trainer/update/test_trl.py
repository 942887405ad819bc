"""Advantages, loss and adapter gradients against TRL's GRPOTrainer, from rewards to `.grad`.

TRL gets the prompts, completions, engine log-probabilities and rewards; everything after that is its own code, with
PEFT's model of the adapter that is trained here. Only its sampler is replaced.
"""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from service.media import Limits, decode_image
from tests.trainer.update import packs
from tests.trainer.update.gradients import difference, gradients_of, observer, values
from trainer.miniature.capabilities import capability
from trainer.miniature.question import questions
from trainer.parts import Completion, LossTerm, Rollout
from trainer.recipe import LossConfig
from trainer.rollout.advantages import group_advantages
from trainer.update.packing import lay_out
from trainer.update.update import update

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]

GROUP_SIZE = 4
REWARDS = (1.0, 0.0, 0.1, 0.9, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.9, 0.0)
"""The second rollout has nothing to compare: it counts in the denominators alone."""
LENGTHS = ((3, 17, 1, 9), (5, 2, 6, 4), (12, 1, 8, 20))
EPSILON: dict[str, Any] = {"eps_low": 0.2, "eps_high": 0.28}
LR = 1.6e-2
"""One step of it moves some ratios out of the clip's range, at both ends."""


@dataclass(frozen=True)
class Batch:
    prompts: list
    rollouts: list
    """Without advantages."""
    rewards: tuple = REWARDS

    @property
    def completions(self):
        return [completion for rollout in self.rollouts for completion in rollout.completions]

    def term(self, *, std=True):
        """With the advantages of these rewards."""
        judged = []
        for number, rollout in enumerate(self.rollouts):
            rewards = self.rewards[number * GROUP_SIZE : (number + 1) * GROUP_SIZE]
            completions = [
                packs.with_advantage(completion, advantage or 0.0)
                for completion, advantage in zip(rollout.completions, group_advantages(rewards, std=std), strict=True)
            ]
            judged.append(rollout.only(completions))
        return LossTerm("native", tuple(judged))


@pytest.fixture
def adapter(noisy):
    return noisy(alpha=16)


@pytest.fixture
def batch(request, policy, adapter):
    """Completions of different lengths, some of one token, which the engine saw a little differently."""
    rng = np.random.default_rng(0)
    prompts = [packs.prompt(request.param, number) for number in range(3)]
    rows = zip(prompts, first_questions(request.param, 3), LENGTHS, strict=True)
    return Batch(prompts, [group_of(policy, adapter, *row, rng) for row in rows])


def first_questions(kind, count):
    return list(itertools.islice(questions(capability(kind), "train", seed=0), count))


def group_of(policy, adapter, prompt, question, lengths, rng):
    """Derivations with slips, cut off."""
    tokenizer = packs.processor().tokenizer
    texts = [question.derivation(style, lambda: rng.random() < 0.5) for style in ("plain", "arrow") * 2]
    ids = [np.array(tokenizer(text)["input_ids"][:length]) for text, length in zip(texts, lengths, strict=True)]
    completions = [Completion(ids_C, np.zeros(len(ids_C), "f4")) for ids_C in ids]
    ids_P = packs.inputs(prompt)["input_ids"][0].numpy()
    rollout = Rollout(prompt, ids_P, tuple(completions))
    student_N = np.array(policy.measure(adapter, lay_out([rollout])))
    policy.vision.forget()
    engine_N = (student_N + rng.normal(0, 0.5, len(student_N))).astype("f4")
    engine = np.split(engine_N, np.cumsum([len(ids_C) for ids_C in ids])[:-1])
    pairs = zip(completions, engine, strict=True)
    return rollout.only(replace(completion, logprobs_C=engine_C) for completion, engine_C in pairs)


@pytest.fixture
def trl_of(policy, adapter, tmp_path):
    """A trainer of TRL with the adapter as it is, whose sampler gives the batch's completions."""
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    def make(batch, **settings):
        policy.adapters.save(adapter, tmp_path)
        base = Qwen3VLForConditionalGeneration.from_pretrained(packs.BASE, dtype=torch.float32)
        processor = Qwen3VLProcessor.from_pretrained(packs.BASE, padding_side="left")
        return grpo_trainer(base, processor, tmp_path, batch, **settings)

    return make


def grpo_trainer(base: Any, processing: Any, folder, batch, *, engine=False, **settings) -> Any:
    """TRL's trainer of the adapter in a folder."""
    from datasets import Dataset
    from peft import PeftModel
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer: Any = GRPOTrainer(
        PeftModel.from_pretrained(base, folder, is_trainable=True),
        lambda completions, **_: list(batch.rewards),
        GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=len(batch.rewards),
            num_generations=GROUP_SIZE,
            beta=0.0,
            epsilon=EPSILON["eps_low"],
            epsilon_high=EPSILON["eps_high"],
            vllm_importance_sampling_mode="token_truncate",
            vllm_importance_sampling_clip_max=2.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": ""}]),
        processing_class=processing,
    )
    trainer.use_vllm = engine  # asked for in the settings, it would start one
    trainer.current_gradient_accumulation_steps = 1

    def sample(prompt_ids, *_):
        expected = [rollout.ids_P.tolist() for rollout in batch.rollouts for _ in range(GROUP_SIZE)]
        assert prompt_ids == expected
        pairs = [(completion.ids_C.tolist(), completion.logprobs_C.tolist()) for completion in batch.completions]
        return [list(column) for column in zip(*pairs, strict=True)]

    trainer._generate_single_turn = sample
    trainer.model.train()
    return trainer


def inputs_of(trainer, batch):
    rows = []
    for prompt in batch.prompts:
        (text,) = (part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text")
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": text}]}
        if prompt.images:
            row["image"] = decode_image(prompt.images[0], Limits())
        rows += [dict(row) for _ in range(GROUP_SIZE)]
    return trainer._generate_and_score_completions(rows)


def trl_gradients_of(trainer, inputs):
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    named = trainer.model.named_parameters()
    return loss.item(), {key.replace(".default", ""): p.grad for key, p in named if p.grad is not None}


@pytest.mark.parametrize("batch", ["text", "image"], indirect=True)
@pytest.mark.parametrize("importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize(
    ("normalise", "std"),
    [("sequence", True), ("token", True), ("sequence", False)],
    ids=["grpo", "dapo", "without-std"],
)
def test_loss_and_gradients_equal_trl(policy, adapter, batch, trl_of, normalise, std, importance):
    loss_type, scale = {"sequence": "grpo", "token": "dapo"}[normalise], "group" if std else "none"
    trainer = trl_of(batch, engine=importance, loss_type=loss_type, scale_rewards=scale)
    inputs = inputs_of(trainer, batch)
    trl_loss, trl_gradients = trl_gradients_of(trainer, inputs)
    gradients, done = gradients_of(
        policy, adapter, [batch.term(std=std)], normalise=normalise, std=std, importance_weight=importance, **EPSILON
    )
    if importance:
        assert inputs["importance_sampling_ratio"].max() == 2.0
        assert done.metrics["native/capped"] > 0
    assert done.metrics["native/loss"] == pytest.approx(trl_loss, abs=1e-6)
    assert difference(gradients, trl_gradients) < 1e-5


@pytest.mark.parametrize("batch", ["text", "image"], indirect=True)
@pytest.mark.parametrize("importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("normalise", ["sequence", "token"])
def test_the_second_update_of_a_batch_equals_trl(policy, adapter, batch, trl_of, normalise, importance):
    """TRL has the old log-probabilities from before the first update, and the weights from after it."""
    loss_type = {"sequence": "grpo", "token": "dapo"}[normalise]
    trainer = trl_of(batch, engine=importance, loss_type=loss_type, num_iterations=2)
    inputs = inputs_of(trainer, batch)
    assert "old_per_token_logps" in inputs
    settings = {"normalise": normalise, "importance_weight": importance, **EPSILON}
    gradients, done = gradients_of(policy, adapter, [batch.term()], lr=LR, updates_per_batch=2, **settings)

    update(policy, adapter, observer(policy, adapter, LR), [batch.term()], loss=LossConfig(**settings), budget=4096)
    after_one = values(policy, adapter)
    for key, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(after_one[key.replace(".default", "")])
    _, trl_gradients = trl_gradients_of(trainer, inputs)

    clipped = {name: trainer._metrics["train"][f"clip_ratio/{name}_mean"][-1] for name in ("low", "high", "region")}
    assert clipped["low"] > 0
    assert clipped["high"] > 0
    assert clipped["region"] < 0.9
    computed = sum(len(completion.ids_C) for index in (0, 2) for completion in batch.rollouts[index].completions)
    assert done.metrics["native/clip"] * computed == pytest.approx(clipped["region"] * batch.term().num_tokens)
    assert difference(gradients, trl_gradients) < 1e-5


@pytest.mark.parametrize("batch", ["text"], indirect=True)
@pytest.mark.parametrize("std", [True, False], ids=["std", "mean"])
def test_advantages_equal_trl(batch, trl_of, std):
    """TRL keeps what nobody has judged, with advantage 0."""
    batch = replace(batch, rewards=(1.0, None, 0.1, 0.9, 0.3, 0.3, 0.3, 0.3, None, None, 0.9, None))
    trainer = trl_of(batch, scale_rewards="group" if std else "none")
    trl_advantages = inputs_of(trainer, batch)["advantages"].tolist()
    groups = [batch.rewards[first : first + GROUP_SIZE] for first in range(0, len(batch.rewards), GROUP_SIZE)]
    advantages = [advantage for rewards in groups for advantage in group_advantages(rewards, std=std)]
    assert [advantage or 0.0 for advantage in advantages] == pytest.approx(trl_advantages, abs=1e-6)
    assert trl_advantages[4:] == [0.0] * 8
