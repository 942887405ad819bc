from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.update import logprobs
from trainer.update.logprobs import chosen_logprobs

ROWS = 16
"""Rows of a small chunk."""


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logprobs._CHUNK, "cpu", ROWS)


def case(rows: int, columns: int, *, vocabulary: int = 50, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden_ND = torch.randn(rows, size, generator=generator)
    output_VD = torch.randn(vocabulary, size, generator=generator)
    return hidden_ND, output_VD, torch.randint(vocabulary, (rows, columns), generator=generator)


def plain(hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    all_NV = (hidden_ND @ output_VD.T).log_softmax(-1)
    return all_NV.gather(-1, ids_NK), -(all_NV.exp() * all_NV).sum(-1)


def check(hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> None:
    hidden_ND.requires_grad_()
    ours_NK, entropy_N = chosen_logprobs(hidden_ND, output_VD, ids_NK)
    theirs_NK, expected_N = plain(hidden_ND, output_VD, ids_NK)
    torch.testing.assert_close(ours_NK, theirs_NK, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(entropy_N, expected_N, atol=1e-5, rtol=1e-6)
    upstream = torch.randn(ids_NK.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(ours_NK, hidden_ND, upstream)
    (expected,) = torch.autograd.grad(theirs_NK, hidden_ND, upstream)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 5])
def test_values_and_gradient_are_those_of_log_softmax(columns: int) -> None:
    check(*case(20, columns))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, 2 * ROWS + 5])
def test_borders_of_chunks_do_not_show(rows: int) -> None:
    check(*case(rows, 3))


def test_an_id_that_is_chosen_twice_counts_twice() -> None:
    hidden_ND, output_VD, ids_NK = case(9, 4)
    ids_NK[:, 1] = ids_NK[:, 3] = ids_NK[:, 0]
    check(hidden_ND, output_VD, ids_NK)


def test_certain_and_impossible_tokens_stay_finite() -> None:
    hidden_ND, output_VD, ids_NK = case(9, 2)
    ids_NK[:, 0] = (hidden_ND @ output_VD.T).argmax(-1)
    ids_NK[:, 1] = (hidden_ND @ output_VD.T).argmin(-1)
    scored = chosen_logprobs(1000 * hidden_ND, output_VD, ids_NK)
    assert scored.chosen_NK.isfinite().all()
    assert (scored.chosen_NK[:, 0] <= 0).all()
    torch.testing.assert_close(scored.entropy_N, torch.zeros(9), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "rest", "tolerance"), [(torch.float32, 1e-5, 0.05), (torch.bfloat16, 1e-3, 0.2)])
def test_a_token_that_is_all_but_certain_keeps_its_small_gradient(
    dtype: torch.dtype, rest: float, tolerance: float
) -> None:
    """Relative to itself: what a product of rows of order 1 rounds to is larger than all of it."""
    _, output_VD, _ = case(1, 1)
    output_VD = output_VD.to(dtype)
    index = int(output_VD.double().norm(dim=-1).argmax())  # along the longest row, that row is the likeliest
    scales = torch.linspace(0.1, 10, 1000).double()[:, None]
    rows = (scales * output_VD[index].double()).to(dtype)
    left = 1 - (rows.double() @ output_VD.double().T).softmax(-1)[:, index]
    hidden_ND = rows[(left - rest).abs().argmin()][None].clone()
    assert left.min() < rest < left.max()
    exact = hidden_ND.double().requires_grad_()
    ids_NK = torch.tensor([[index]])
    chosen_logprobs(hidden_ND.requires_grad_(), output_VD, ids_NK).chosen_NK.sum().backward()
    plain(exact, output_VD.double(), ids_NK)[0].sum().backward()
    assert hidden_ND.grad is not None
    assert exact.grad is not None
    assert (hidden_ND.grad.double() - exact.grad).norm() < tolerance * exact.grad.norm()


def test_only_the_log_probabilities_have_a_gradient() -> None:
    hidden_ND, output_VD, ids_NK = case(4, 1)
    scored = chosen_logprobs(hidden_ND.requires_grad_(), output_VD, ids_NK)
    assert scored.chosen_NK.requires_grad
    assert not scored.entropy_N.requires_grad
    assert not chosen_logprobs(hidden_ND.detach(), output_VD, ids_NK).chosen_NK.requires_grad


def test_bfloat16_gives_float32_values_near_the_true_ones() -> None:
    hidden_ND, output_VD, ids_NK = case(40, 2)
    halves = (hidden_ND / 4).bfloat16().requires_grad_()
    whole = (hidden_ND / 4).requires_grad_()
    scored = chosen_logprobs(halves, output_VD.bfloat16(), ids_NK)
    expected_NK, entropy_N = plain(whole, output_VD, ids_NK)
    assert scored.chosen_NK.dtype == scored.entropy_N.dtype == torch.float32
    torch.testing.assert_close(scored.chosen_NK, expected_NK, atol=0.05, rtol=0)
    torch.testing.assert_close(scored.entropy_N, entropy_N, atol=0.05, rtol=0)
    scored.chosen_NK.sum().backward()
    expected_NK.sum().backward()
    assert halves.grad is not None
    assert halves.grad.dtype == torch.bfloat16
    torch.testing.assert_close(halves.grad.float(), whole.grad, atol=0.1, rtol=0)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.usefixtures("_small_chunks")
def test_never_are_there_more_logits_than_a_chunks() -> None:
    vocabulary = 20_000
    hidden_ND, output_VD, ids_NK = case(4 * ROWS, 3, vocabulary=vocabulary, size=8)
    with _Largest() as largest:
        chosen_logprobs(hidden_ND.requires_grad_(), output_VD, ids_NK).chosen_NK.sum().backward()
    assert largest.elements == ROWS * vocabulary
    with _Largest() as largest:
        plain(hidden_ND, output_VD, ids_NK)[0].sum().backward()
    assert largest.elements == 4 * ROWS * vocabulary
