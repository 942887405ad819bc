import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from adapters.errors import UserError
from adapters.manifest import ADAPTER_FILES, WEIGHTS
from adapters.validate import Adapter, base_shape, check_adapter
from tests.adapters.peft_files import PARTIAL, save_by_peft
from tests.trainer.update.packs import BASE, processor, prompt, random_rollout
from trainer.parts import LossTerm
from trainer.recipe import LossConfig
from trainer.update import attention
from trainer.update.optim import Optimiser
from trainer.update.packing import Pack, lay_out
from trainer.update.policy import Policy
from trainer.update.update import update


def small_pack(seed: int = 0) -> Pack:
    return lay_out([random_rollout(prompt("text"), [6, 3], np.random.default_rng(seed))])


def values(policy: Policy, name: str) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in policy.adapters.parameters(name).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make


def test_a_new_adapter_is_the_base_to_the_bit(policy: Policy) -> None:
    policy.adapters.add("new", rank=4, alpha=8, seed=0)
    fresh, base = (policy.logprobs(name, small_pack()).chosen_NK for name in ("new", None))
    policy.adapters.remove("new")
    assert torch.equal(fresh, base)


def test_an_adapter_that_is_not_the_base_computes_something_else(policy: Policy, noisy: Callable[..., str]) -> None:
    first, second = noisy(0), noisy(1)
    computed = [policy.logprobs(name, small_pack()).chosen_NK for name in (first, second, None, first)]
    assert torch.equal(computed[0], computed[3])
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(computed))


def test_equal_seeds_share_their_a(policy: Policy) -> None:
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        torch.rand(3)  # the global stream plays no term
        policy.adapters.add(name, rank=4, alpha=8, seed=seed)
    first, same, different = (values(policy, name) for name in ("one", "same", "other"))
    for name in ("one", "same", "other"):
        policy.adapters.remove(name)
    for key, value in first.items():
        assert torch.equal(value, same[key])
        assert torch.equal(value, different[key]) == ("lora_B" in key)
        if "lora_A" in key:
            bound = value.shape[1] ** -0.5
            assert 0.9 * bound < value.abs().max() <= bound
        else:
            assert not value.any()


def test_no_two_layers_start_alike(policy: Policy, noisy: Callable[..., str]) -> None:
    starts = [value for key, value in values(policy, noisy(rank=4, alpha=8)).items() if "lora_A" in key]
    assert len({value.numpy().tobytes() for value in starts}) == len(starts)


def test_what_is_saved_is_an_adapter_of_the_base(
    policy: Policy, noisy: Callable[..., str], folder: Callable[[str], Path]
) -> None:
    saved = folder("saved")
    policy.adapters.save(noisy(rank=8, alpha=16), saved)
    assert sorted(files(saved)) == sorted(ADAPTER_FILES)
    assert check_adapter(saved, base_shape(BASE), max_rank=8) == Adapter(8, 16, False)


@pytest.mark.parametrize(("rank", "alpha"), [(16, 32), (4, 4)])
def test_peft_reads_what_is_saved(
    policy: Policy, noisy: Callable[..., str], folder: Callable[[str], Path], rank: int, alpha: int
) -> None:
    saved, name = folder("saved"), noisy(3, rank=rank, alpha=alpha)
    policy.adapters.save(name, saved)
    base = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    read = {
        key.replace(".default", ""): value.detach()
        for key, value in PeftModel.from_pretrained(base, saved).named_parameters()
        if ".lora_" in key
    }
    expected = values(policy, name)
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], expected[key]) for key in expected)
    # That PEFT computes the same with them is shown in test_policy.


def test_values_survive_the_round_trip(
    policy: Policy, noisy: Callable[..., str], folder: Callable[[str], Path]
) -> None:
    saved, again, first, second = folder("saved"), folder("again"), noisy(1), noisy(2)
    policy.adapters.save(first, saved)
    policy.adapters.load(second, saved)
    before, after = values(policy, first), values(policy, second)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(value, before[key]) for key, value in load_file(saved / WEIGHTS).items())
    policy.adapters.save(second, again)
    assert files(again) == files(saved)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("query-value", {"r": 4}),
        ("two-layers", {"r": 8, "use_rslora": True}),
        ("all-linear", {"r": 3, "lora_alpha": 5}),
    ],
)
def test_an_adapter_from_elsewhere_is_the_same_model_here(
    policy: Policy, noisy: Callable[..., str], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    elsewhere = save_by_peft(tmp_path / kind, **PARTIAL[kind], **settings)
    name = noisy(1, rank=8, alpha=16)  # another model before, of which nothing may be left
    policy.adapters.load(name, elsewhere)
    base = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, elsewhere).eval()
    deltas = {
        module.removeprefix("base_model.model.model.language_model."): cast(Any, layer).get_delta_weight("default")
        for module, layer in peft.named_modules()
        if isinstance(layer, LoraLayer)
    }
    parameters = policy.adapters.parameters(name)
    for key, down_rI in parameters.items():
        if "lora_A" in key:
            ours_OI = 16 / 8 * parameters[key.replace("lora_A", "lora_B")] @ down_rI
            module = key.removeprefix("base_model.model.model.language_model.").removesuffix(".lora_A.weight")
            expected_OI = deltas.get(module, torch.zeros_like(ours_OI))
            torch.testing.assert_close(ours_OI, expected_OI, rtol=1e-5, atol=1e-6)
            assert (down_rI != 0).any(dim=1).all()  # every direction can learn


def test_a_higher_rank_from_elsewhere_is_told(policy: Policy, noisy: Callable[..., str], tmp_path: Path) -> None:
    elsewhere = save_by_peft(tmp_path / "large", r=16, target_modules=["q_proj"])
    with pytest.raises(UserError, match="starts with an adapter of rank 16; set lora"):
        policy.adapters.load(noisy(1, rank=8, alpha=16), elsewhere)


def test_training_one_adapter_moves_nothing_else() -> None:
    """The state of the whole model, base, vision tower and all adapters, is compared bit for bit."""
    attentions = {"text_config": attention.NAME, "vision_config": "sdpa"}
    model = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32, attn_implementation=attentions)
    policy = Policy(model, processor())
    for name in ("before", "trained", "after"):
        policy.adapters.add(name, rank=4, alpha=8, seed=0)
    optimiser = Optimiser(policy.adapters.parameters("trained"), lr=1e-3, weight_decay=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rng = np.random.default_rng(0)
    for _ in range(3):
        rollouts = tuple(random_rollout(prompt(kind), [5, 2], rng) for kind in ("text", "image", "video"))
        assert (
            update(policy, "trained", optimiser, [LossTerm("native", rollouts)], loss=LossConfig(), budget=100).skipped
            is None
        )
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.endswith(".trained")}
    assert len(changed) == len(policy.adapters.parameters("trained"))
    assert {key for key, parameter in model.named_parameters() if parameter.grad is not None} <= changed


def test_a_removed_adapter_leaves_nothing(policy: Policy, noisy: Callable[..., str]) -> None:
    stays = noisy(0)
    expected = policy.logprobs(stays, small_pack()).chosen_NK
    policy.adapters.add("goes", rank=4, alpha=8, seed=0)
    assert policy.adapters.names[-2:] == (stays, "goes")
    policy.adapters.remove("goes")
    assert policy.adapters.names[-1] == stays
    assert torch.equal(policy.logprobs(stays, small_pack()).chosen_NK, expected)
    policy.adapters.add("goes", rank=8, alpha=8, seed=0)  # the name is free, for another shape too
    policy.adapters.remove("goes")


def test_a_branch_goes_on_with_fewer_projections_than_it_may_train(
    policy: Policy, noisy: Callable[..., str], folder: Callable[[str], Path]
) -> None:
    saved, five = folder("saved"), ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    first = noisy(1, modules=("v_proj", "down_proj"))
    policy.adapters.save(first, saved)
    assert check_adapter(saved, base_shape(BASE), max_rank=16).rank == 16
    second, third = noisy(2, modules=five), noisy(3, modules=("up_proj",))
    expected = policy.logprobs(first, small_pack()).chosen_NK
    policy.adapters.load(second, saved)
    torch.testing.assert_close(policy.logprobs(second, small_pack()).chosen_NK, expected, atol=1e-5, rtol=0)
    trained = {key.split(".")[-3] for key in policy.adapters.parameters(second)}
    assert trained == set(five)
    with pytest.raises(UserError, match=f"{third}: starts with an adapter of down_proj, v_proj too; add them to lora"):
        policy.adapters.load(third, saved)
