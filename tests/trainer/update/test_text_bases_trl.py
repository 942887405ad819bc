"""Bases without vision beside TRL's GRPOTrainer, from rewards to `.grad`: the same tests as the miniature's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.text_bases import KINDS, write_text_base
from tests.trainer.update import packs
from tests.trainer.update.gradients import difference, gradients_of
from tests.trainer.update.test_trl import (
    EPSILON,
    LENGTHS,
    Batch,
    first_questions,
    group_of,
    grpo_trainer,
    inputs_of,
    pytestmark,  # noqa: F401, the tier and the warnings of TRL are the same
    trl_gradients_of,
)
from trainer.update.policy import Policy, load_policy


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_base(tmp_path_factory.mktemp("base") / request.param, request.param)


@pytest.fixture(scope="module")
def policy(base: Path) -> Policy:
    """Instead of the miniature, also where `noisy` asks for it."""
    return load_policy(base, dtype="float32")


@pytest.mark.parametrize("importance", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("modules", [None, ("v_proj", "down_proj")], ids=["seven", "two"])
def test_loss_and_gradients_equal_trl(
    base: Path,
    policy: Policy,
    noisy: Callable[..., str],
    tmp_path: Path,
    importance: bool,
    modules: tuple[str, ...] | None,
) -> None:
    adapter = noisy(alpha=16) if modules is None else noisy(alpha=16, modules=modules)
    policy.adapters.save(adapter, tmp_path)
    rng = np.random.default_rng(0)
    prompts = [packs.prompt("text", number) for number in range(3)]
    rows = zip(prompts, first_questions("text", 3), LENGTHS, strict=True)
    batch = Batch(prompts, [group_of(policy, adapter, *row, rng) for row in rows])
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    settings = {"loss_type": "grpo", "scale_rewards": "group"}
    trainer = grpo_trainer(model, tokenizer, tmp_path, batch, engine=importance, **settings)
    trl_loss, trl_gradients = trl_gradients_of(trainer, inputs_of(trainer, batch))
    gradients, done = gradients_of(policy, adapter, [batch.term()], importance_weight=importance, **EPSILON)
    assert done.metrics["native/loss"] == pytest.approx(trl_loss, abs=1e-6)
    assert gradients.keys() == trl_gradients.keys()
    assert difference(gradients, trl_gradients) < 1e-5
