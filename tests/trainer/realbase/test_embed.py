"""A Llama inside Qwen3-VL's architecture says what it said, with adapters too; one on the scaled side does not."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests import text_bases
from tests.trainer.update.packs import noisy, processor, prompt, random_rollout
from tests.trainer.update.test_text_bases import rollouts
from trainer.realbase.embed import MODULES, embed
from trainer.update.packing import pack
from trainer.update.policy import Policy, load_policy

SIZES: dict[str, Any] = text_bases.SIZES | {
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """The same random model by itself and embedded. Its queries are large, as those of trained models are."""
    torch.manual_seed(0)
    llama: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    for layer in llama.model.layers:
        layer.self_attn.q_proj.weight.data *= 10
    root = tmp_path_factory.mktemp("pair")
    llama.save_pretrained(root / "llama")
    embed(llama, processor().tokenizer).save_pretrained(root / "embedded")
    processor().save_pretrained(root / "embedded")
    return {name: load_policy(root / name, dtype="float32") for name in ("llama", "embedded")}


def logprobs(policy: Policy, adapter: str | None) -> torch.Tensor:
    (row,) = pack(rollouts(), 4096)
    with torch.no_grad():
        return policy.logprobs(adapter, row).chosen_NK[:, 0]


def test_an_embedded_llama_says_the_same(pair: dict[str, Policy]) -> None:
    expected = logprobs(pair["llama"], None)
    assert expected.std() > 0.5
    torch.testing.assert_close(logprobs(pair["embedded"], None), expected, atol=1e-4, rtol=0)


def test_adapters_of_the_five_are_the_same_adapters(pair: dict[str, Policy]) -> None:
    for policy in pair.values():
        noisy(policy, "five", 0, modules=MODULES)
    expected, base = logprobs(pair["llama"], "five"), logprobs(pair["llama"], None)
    torch.testing.assert_close(logprobs(pair["embedded"], "five"), expected, atol=1e-4, rtol=0)
    assert (expected - base).abs().max() > 0.1


def test_an_adapter_of_queries_is_another_one_there(pair: dict[str, Policy]) -> None:
    """The trap that `MODULES` is for: the delta is millions of times as strong beside scaled weights."""
    for policy in pair.values():
        noisy(policy, "queries", 0, modules=("q_proj",))
    difference = logprobs(pair["embedded"], "queries") - logprobs(pair["llama"], "queries")
    assert difference.abs().max() > 0.1


def test_the_vision_tower_is_beside_it(pair: dict[str, Policy]) -> None:
    picture = random_rollout(prompt("image"), [3], np.random.default_rng(0))
    features_MD = pair["embedded"].vision(picture).features_MD
    assert features_MD is not None
    assert features_MD.shape[1] == SIZES["hidden_size"]
