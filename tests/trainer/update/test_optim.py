import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from adapters.manifest import OPTIMISER
from trainer.update.optim import Optimiser

SHAPES = {"down": (3, 4), "up": (5, 3)}
SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "grad_norm": 1.0, "warmup_steps": 4}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in SHAPES.items()}


def gradients(step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def values(optimised):
    return {key: parameter.detach().clone() for key, parameter in optimised.items()}


def state(optimiser):
    """Everything that the next update depends on, as plain numbers."""
    return [
        (parameter.tolist(), {name: value.tolist() for name, value in moments.items()})
        for parameter, moments in optimiser.snapshot()
    ]


def by_hand(start, steps, *, lr, betas, weight_decay, grad_norm, warmup_steps):
    """AdamW in float64 as its paper has it."""
    weights = {key: value.detach().double() for key, value in start.items()}
    first, second = ({key: torch.zeros_like(value) for key, value in weights.items()} for _ in range(2))
    for step in range(1, steps + 1):
        step_gradients = {key: value.double() for key, value in gradients(step).items()}
        norm = math.sqrt(sum(float((value**2).sum()) for value in step_gradients.values()))
        share, rate = min(1.0, grad_norm / norm), lr * min(1.0, step / warmup_steps if warmup_steps else 1.0)
        for key, gradient in step_gradients.items():
            first[key] = betas[0] * first[key] + (1 - betas[0]) * share * gradient
            second[key] = betas[1] * second[key] + (1 - betas[1]) * (share * gradient) ** 2
            mean, square = first[key] / (1 - betas[0] ** step), second[key] / (1 - betas[1] ** step)
            weights[key] = weights[key] * (1 - rate * weight_decay) - rate * mean / (square.sqrt() + 1e-8)
    return weights


@pytest.mark.parametrize("change", [{}, {"warmup_steps": 0}, {"grad_norm": 100.0}, {"weight_decay": 0.0}])
def test_updates_are_adamw(change):
    settings = SETTINGS | change
    optimised = parameters()
    expected = by_hand(parameters(), 6, **settings)
    optimiser = Optimiser(optimised, **settings)
    for step in range(1, 7):
        optimiser.step(gradients(step))
    assert optimiser.num_updates == 6
    for key, value in expected.items():
        torch.testing.assert_close(optimised[key].detach().double(), value, rtol=0, atol=2e-6)


def test_updates_equal_torchs_own():
    optimised, torchs = parameters(), parameters()
    optimiser = Optimiser(optimised, lr=1e-2, weight_decay=0.1, grad_norm=math.inf)
    adam = torch.optim.AdamW(torchs.values(), lr=1e-2, weight_decay=0.1, fused=True)
    for step in range(5):
        optimiser.step(gradients(step))
        for key, gradient in gradients(step).items():
            torchs[key].grad = gradient
        adam.step()
    assert all(torch.equal(optimised[key], torchs[key]) for key in SHAPES)


def test_the_learning_rate_rises_linearly():
    """Without decay the first steps move every value by the rate itself when gradients do not change."""
    optimised = parameters()
    optimiser = Optimiser(optimised, lr=1e-2, grad_norm=math.inf, warmup_steps=4)
    moved = []
    for _ in range(6):
        before = values(optimised)
        optimiser.step(gradients(0))
        moved.append(max((optimised[key] - before[key]).abs().max().item() for key in SHAPES))
    assert moved == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rel=1e-3)


def test_long_gradients_are_scaled_down_and_short_ones_are_not():
    def first_moments(scale):
        optimiser = Optimiser(parameters(), lr=1e-2, betas=(0.0, 0.999), grad_norm=1.0)
        optimiser.step(gradients(0, scale))
        return [moments["exp_avg"] for _, moments in optimiser.snapshot()]

    whole = torch.nn.utils.get_total_norm(gradients(0).values())
    assert whole > 1
    assert torch.nn.utils.get_total_norm(first_moments(1.0)).item() == pytest.approx(1, rel=1e-5)
    assert torch.nn.utils.get_total_norm(first_moments(0.01)).item() == pytest.approx(0.01 * whole.item(), rel=1e-5)


@pytest.mark.parametrize("num_updates", [0, 1, 2])
def test_a_saved_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path, num_updates):
    straight = parameters()
    through = Optimiser(straight, **SETTINGS)
    for step in range(3):
        through.step(gradients(step))

    stopped = parameters()
    first = Optimiser(stopped, **SETTINGS)
    for step in range(num_updates):
        first.step(gradients(step))
    first.save(tmp_path)
    resumed = {key: nn.Parameter(value) for key, value in values(stopped).items()}
    second = Optimiser(resumed, **SETTINGS)
    second.load(tmp_path)
    assert second.num_updates == num_updates
    for step in range(num_updates, 3):
        second.step(gradients(step))

    assert state(second) == state(through)


def test_the_file_before_the_first_update_has_no_moments(tmp_path):
    Optimiser(parameters(), lr=1e-2).save(tmp_path)
    assert {name: value.tolist() for name, value in load_file(tmp_path / OPTIMISER).items()} == {"step": [0.0]}


def test_equal_optimisers_are_equal_files(tmp_path):
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        optimiser = Optimiser(parameters(), **SETTINGS)
        optimiser.step(gradients(0))
        optimiser.save(folder)
        contents.append((folder / OPTIMISER).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("num_updates", [0, 2])
def test_a_snapshot_brings_everything_back(num_updates):
    optimiser = Optimiser(parameters(), **SETTINGS)
    for step in range(num_updates):
        optimiser.step(gradients(step))
    before, snapshot = state(optimiser), optimiser.snapshot()
    for attempt in (10, 20):  # it can be needed more than once
        optimiser.step(gradients(attempt))
        assert state(optimiser) != before
        optimiser.restore(snapshot)
        assert state(optimiser) == before
        assert optimiser.num_updates == num_updates


def test_no_snapshot_is_nothing_to_bring_back():
    optimiser = Optimiser(parameters(), **SETTINGS)
    optimiser.step(gradients(0))
    after = state(optimiser)
    optimiser.restore(None)
    assert state(optimiser) == after


def test_gradients_are_used_up():
    optimised = parameters()
    Optimiser(optimised, lr=1e-2).step(gradients(0))
    assert all(parameter.grad is None for parameter in optimised.values())
