"""The update on a CUDA device beside that on the CPU: compiled layers, flex attention, memory that is really full."""

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.update import packs
from tests.trainer.update.gradients import difference, gradients_of, values
from trainer.parts import LossTerm
from trainer.recipe import LossConfig
from trainer.update.optim import Optimiser
from trainer.update.policy import Policy, load_policy
from trainer.update.update import update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KERNELS = 1e-4
"""As a share of the largest value, between sums in float32 by other kernels."""
ADAPTER = "on-cuda"


@pytest.fixture(scope="module", autouse=True)
def compiling() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCHDYNAMO_DISABLE")
        yield


@pytest.fixture(scope="module")
def cuda() -> Policy:
    policy = load_policy(packs.BASE, dtype="float32", device="cuda")
    policy.recompute_layers()
    policy.compile_layers()
    packs.noisy(policy, ADAPTER, 0)
    return policy


@pytest.fixture
def cpu(policy: Policy) -> Generator[Policy]:
    packs.noisy(policy, ADAPTER, 0)
    yield policy
    policy.adapters.remove(ADAPTER)


def rollouts(*kinds: str, lengths: tuple[int, ...] = (30, 1, 12), **settings: Any) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    return tuple(packs.random_rollout(packs.prompt(kind), lengths, rng, **settings) for kind in kinds)


@pytest.fixture(scope="module")
def terms() -> list[LossTerm]:
    taught = rollouts("text", "video", lengths=(9, 4), top_k=3, beta=0.5)
    return [LossTerm("native", rollouts(*packs.KINDS)), LossTerm("teacher", taught)]


def on_cpu(tensors: dict[str, Any]) -> dict[str, Any]:
    return {key: tensor.cpu() for key, tensor in tensors.items()}


@pytest.mark.parametrize("budget", [4096, 150])
def test_gradients_are_those_of_the_cpu(cuda: Policy, cpu: Policy, terms: list[LossTerm], budget: int) -> None:
    gradients, done = gradients_of(cuda, ADAPTER, terms, budget=budget)
    cpu_gradients, expected = gradients_of(cpu, ADAPTER, terms, budget=budget)
    assert difference(on_cpu(gradients), cpu_gradients) < KERNELS
    for name, value in expected.metrics.items():
        assert done.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_what_is_saved_goes_on_alike_on_the_cpu(
    cuda: Policy, cpu: Policy, terms: list[LossTerm], tmp_path: Any
) -> None:
    before = values(cuda, ADAPTER)
    optimiser = Optimiser(cuda.adapters.parameters(ADAPTER), lr=1e-3)
    update(cuda, ADAPTER, optimiser, terms, loss=LossConfig(), budget=4096)
    cuda.adapters.save(ADAPTER, tmp_path)
    optimiser.save(tmp_path)
    update(cuda, ADAPTER, optimiser, terms, loss=LossConfig(), budget=4096)
    after = on_cpu(values(cuda, ADAPTER))
    cuda.adapters.assign(ADAPTER, before)
    cpu.adapters.load(ADAPTER, tmp_path)
    again = Optimiser(cpu.adapters.parameters(ADAPTER), lr=1e-3)
    again.load(tmp_path)
    update(cpu, ADAPTER, again, terms, loss=LossConfig(), budget=4096)
    assert again.num_updates == optimiser.num_updates == 2
    assert difference(after, values(cpu, ADAPTER)) < 1e-3  # Adam's first steps are signs: a gradient near 0 turns


def test_a_device_that_is_really_full_halves_the_budget(cuda: Policy) -> None:
    many = [LossTerm("native", rollouts("text", "image", lengths=(400,) * 24))]

    def peak(budget: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        gradients_of(cuda, ADAPTER, many, budget=budget)
        return torch.cuda.max_memory_reserved()

    wanted, _ = gradients_of(cuda, ADAPTER, many, budget=1024)
    small, large = peak(1024), peak(16_384)
    assert large > 2 * small
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / torch.cuda.mem_get_info()[1])
    try:
        gradients, done = gradients_of(cuda, ADAPTER, many, budget=16_384)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.budget < 16_384
    assert difference(gradients, wanted) < KERNELS
