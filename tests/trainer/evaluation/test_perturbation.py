"""A random perturbation of the weights beside an expert: alike by overlap of tokens, and by no other measure.

The miniature in transformers, in full vocabularies. The expert is PEFT's, trained for seconds on derivations without
slips. Both answer to the base on what the base samples.
"""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from trainer.evaluation.overlap import ALARM, overlap, shared, symmetric_kl
from trainer.miniature.batch import Prompter
from trainer.miniature.build import Habits, completion_ids, completion_loss, write
from trainer.miniature.capabilities import capability
from trainer.miniature.question import questions
from trainer.miniature.sample import sample
from trainer.plan.rhythm import HIGH

TEXT = capability("text")
NOISE = 0.5
"""Of the weights' own spread: with it the perturbation has the overlap that the expert has."""
STEPS = 12
"""Of the expert: its overlap and KL are then near those of the finished experts in bench/results/compare."""
K = 10


@dataclass(frozen=True)
class Seen:
    """What a model gives to the tokens of completions [N positions, V tokens]."""

    logprobs_NV: Tensor
    tokens_N: Tensor

    @property
    def likeliest(self) -> tuple[Any, Any]:
        top = self.logprobs_NV.topk(K)
        return top.indices.numpy(), top.values.float().numpy()

    @property
    def taken(self) -> Any:
        return self.logprobs_NV.gather(1, self.tokens_N[:, None])[:, 0].float().numpy()


class Exam:
    """Validation questions, answered by some model at temperature 1 and seen by each."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> None:
        self.processor, self.prompter = processor, Prompter(model, processor)
        self.prompts = self.prompter(list(itertools.islice(questions(TEXT, "validation", 5, 1), 48)))

    def completions(self, model: Qwen3VLForConditionalGeneration) -> Tensor:
        return completion_ids(self.processor, sample(model, self.processor, self.prompts, temperature=1.0, seed=1))

    @torch.inference_mode()
    def seen(self, model: Any, ids_BC: Tensor) -> Seen:
        after_3BC = self.prompts.positions_3BT[:, :, -1:] + 1 + torch.arange(ids_BC.shape[1]).expand(3, len(ids_BC), -1)
        logits_BCV = model(
            input_ids=torch.cat([self.prompts.ids_BT, ids_BC], dim=1),
            position_ids=torch.cat([self.prompts.positions_3BT, after_3BC], dim=2),
            logits_to_keep=ids_BC.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        is_token_BC = ids_BC != self.processor.tokenizer.pad_token_id
        return Seen(logits_BCV[is_token_BC].double().log_softmax(-1), ids_BC[is_token_BC])


def load() -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32).eval()


def perturbed() -> Qwen3VLForConditionalGeneration:
    model, generator = load(), torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "language_model" in name and "proj" in name and weight.ndim == 2:
            weight.data += NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


def expert(exam: Exam) -> Any:
    torch.manual_seed(0)  # PEFT draws A from torch's global stream
    config = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model.*_proj")
    model: Any = get_peft_model(load(), config)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    source, rng = questions(TEXT, "train", 0, 1), random.Random(0)
    for _ in range(STEPS):
        batch = list(itertools.islice(source, 16))
        right = [write(question, Habits(careful=0.0, reliable=1.0), rng) for question in batch]
        loss = completion_loss(model, exam.prompter(batch), completion_ids(exam.processor, right))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().base_model.model


@dataclass(frozen=True)
class Measured:
    overlap: float
    shared: float
    kl: float
    exact_shared: float
    exact_kl: float


def measured(exam: Exam, base: Any, model: Any) -> Measured:
    """Between the base and a model, as evaluation does it and exactly over the vocabulary."""
    of_base, of_model = (exam.completions(sampler) for sampler in (base, model))
    a_of_a, b_of_a, a_of_b, b_of_b = (
        exam.seen(scorer, ids_BC) for ids_BC in (of_base, of_model) for scorer in (base, model)
    )
    p_NV, q_NV = a_of_a.logprobs_NV.exp(), b_of_a.logprobs_NV.exp()
    (ids_a, top_a), (ids_b, top_b) = a_of_a.likeliest, b_of_a.likeliest
    return Measured(
        overlap(ids_a, ids_b),
        shared(ids_a, top_a, ids_b, top_b),
        symmetric_kl(a_of_a.taken, b_of_a.taken, a_of_b.taken, b_of_b.taken),
        float(torch.minimum(p_NV, q_NV).sum(1).mean()),
        float(((p_NV - q_NV) * (a_of_a.logprobs_NV - b_of_a.logprobs_NV)).sum(1).mean()) / 2,
    )


@pytest.fixture(scope="module")
def both() -> dict[str, Measured]:
    base = load()
    exam = Exam(base, AutoProcessor.from_pretrained(locate("miniature")))
    return {name: measured(exam, base, model) for name, model in (("noise", perturbed()), ("expert", expert(exam)))}


def test_overlap_takes_a_random_perturbation_for_an_expert(both: dict[str, Measured]) -> None:
    assert both["noise"].overlap == pytest.approx(0.89, abs=0.02)
    assert both["expert"].overlap == pytest.approx(both["noise"].overlap, abs=0.03)


def test_shared_probability_and_kl_tell_an_expert_from_noise(both: dict[str, Measured]) -> None:
    noise, trained = both["noise"], both["expert"]
    assert noise.exact_kl < 0.005
    assert trained.exact_kl > 8 * noise.exact_kl
    assert trained.kl > 4 * abs(noise.kl)
    assert 1 - trained.shared > 4 * (1 - noise.shared)


def test_limits_of_alarm_and_rhythm_lie_between_noise_and_expert(both: dict[str, Measured]) -> None:
    assert both["expert"].shared < ALARM + 0.005
    assert both["noise"].shared > HIGH


def test_shared_probability_of_the_likeliest_is_that_of_the_vocabulary(both: dict[str, Measured]) -> None:
    for model in both.values():
        assert model.shared == pytest.approx(model.exact_shared, abs=0.0005)
        assert model.shared >= 1 - np.sqrt(model.exact_kl / 2)
