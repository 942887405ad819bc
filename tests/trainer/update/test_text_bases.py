"""Bases without vision in the packed policy, beside plain transformers and PEFT on one sequence at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.errors import UserError
from adapters.validate import TARGETS, Adapter, base_shape, check_adapter
from tests.text_bases import KINDS, write_text_base
from tests.trainer.update.packs import BYTES, CAPABILITY, noisy
from tests.trainer.update.test_policy import assert_near, gradients, loss, packed
from trainer.parts import Completion, Prompt, Rollout
from trainer.update.packing import pack
from trainer.update.policy import Policy, load_policy
from trainer.update.update import advantages_of

LENGTHS = ((9, [5, 1, 12, 3]), (30, [7]), (3, [1, 1, 20]))
"""Of prompts, and of their completions."""


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(scope="module")
def text_policy(base: Path) -> Policy:
    return load_policy(base, dtype="float32")


def rollouts() -> list[Rollout]:
    rng = np.random.default_rng(0)
    groups: list[Rollout] = []
    for number, (prompt, lengths) in enumerate(LENGTHS):
        completions = [
            Completion(
                rng.integers(0, BYTES, length),
                np.zeros(length, np.float32),
                advantages_C=rng.normal(size=length).astype(np.float32),
            )
            for length in lengths
        ]
        ids_P = rng.integers(0, BYTES, prompt)
        groups.append(Rollout(Prompt(str(number), CAPABILITY, messages=(), answer=""), ids_P, tuple(completions)))
    return groups


def separate(reference: Any, rows: list[Rollout]) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = sum(len(completion.ids_C) for rollout in rows for completion in rollout.completions)
    logprobs: list[Tensor] = []
    for rollout in rows:
        for completion in rollout.completions:
            ids_1T = torch.from_numpy(np.concatenate([rollout.ids_P, completion.ids_C]))[None]
            logits_CV = reference(input_ids=ids_1T).logits[0, len(rollout.ids_P) - 1 : -1]
            logprobs_C = logits_CV.log_softmax(-1).gather(-1, ids_1T[0, len(rollout.ids_P) :, None])[:, 0]
            loss([logprobs_C], [advantages_of(completion)], tokens).backward()
            logprobs.append(logprobs_C.detach())
    parameters = {key: parameter for key, parameter in reference.named_parameters() if parameter.requires_grad}
    return torch.cat(logprobs), {key.replace(".default", ""): grad for key, grad in gradients(parameters).items()}


@pytest.mark.parametrize("modules", [tuple(TARGETS), ("v_proj", "o_proj", "up_proj")], ids=["seven", "three"])
@pytest.mark.parametrize("budget", [4096, 24], ids=["one pack", "several"])
def test_a_pack_is_separate_sequences(
    base: Path, text_policy: Policy, tmp_path: Path, budget: int, modules: tuple[str, ...]
) -> None:
    noisy(text_policy, "compared", 0, modules=modules)
    text_policy.adapters.save("compared", tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    reference = PeftModel.from_pretrained(plain, tmp_path, is_trainable=True).eval()
    rows = rollouts()
    packs = pack(rows, budget)
    assert (len(packs) > 1) == (budget < 100)
    measured = packed(text_policy, packs, "compared")
    text_policy.adapters.remove("compared")
    assert_near(measured, separate(reference, rows), rtol=2e-6)


def test_recomputed_layers_give_the_same(base: Path, text_policy: Policy) -> None:
    again = load_policy(base, dtype="float32")
    again.recompute_layers()
    for model in (text_policy, again):
        noisy(model, "recomputed", 0)
    packs = pack(rollouts(), 4096)
    plain = packed(text_policy, packs, "recomputed")
    text_policy.adapters.remove("recomputed")
    assert_near(packed(again, packs, "recomputed"), plain)


def test_what_is_saved_is_an_adapter_of_the_base(base: Path, text_policy: Policy, tmp_path: Path) -> None:
    noisy(text_policy, "saved", 0, rank=8, alpha=16)
    text_policy.adapters.save("saved", tmp_path)
    text_policy.adapters.remove("saved")
    assert check_adapter(tmp_path, base_shape(base), max_rank=8) == Adapter(8, 16, False)


def test_an_adapter_of_the_miniature_is_none_of_it(base: Path, policy: Policy, tmp_path: Path) -> None:
    noisy(policy, "foreign", 0, rank=8, alpha=16)
    policy.adapters.save("foreign", tmp_path)
    policy.adapters.remove("foreign")
    with pytest.raises(UserError, match=r"not below base_model\.model\.model\.layers\.; rename the keys"):
        check_adapter(tmp_path, base_shape(base), max_rank=8)


def test_a_picture_never_gets_so_far(text_policy: Policy) -> None:
    rollout = rollouts()[0]
    with pytest.raises(AssertionError, match="refused before a run begins"):
        text_policy.vision(replace(rollout, prompt=replace(rollout.prompt, images=(b"",))))
