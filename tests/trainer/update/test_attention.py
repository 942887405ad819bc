from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.functional import scaled_dot_product_attention

from tests.trainer.update.packs import dense_mask, spans_of
from trainer.update.attention import Layout, block_mask, layout, prefix_shared, visibility
from trainer.update.packing import Span

CPU = torch.device("cpu")
HEADS, KEY_HEADS, HEAD = 4, 2, 8
SCALING = 0.3  # not the default of any kernel
SHAPES = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=5)), min_size=1, max_size=4
)


def rows(spans: Sequence[Span], *, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Query, key and value [1, H, T, D]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = spans[-1].end
    return [
        (scale * torch.randn(1, heads, tokens, HEAD, generator=generator)).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def packed(qkv: Sequence[Tensor], how: Layout) -> Tensor:
    query, key, value = qkv
    return prefix_shared(nn.Module(), query, key, value, None, scaling=SCALING, layout=how)[0]


def dense(qkv: Sequence[Tensor], spans: Sequence[Span]) -> Tensor:
    output = scaled_dot_product_attention(*qkv, attn_mask=dense_mask(spans), scale=SCALING, enable_gqa=True)
    return output.transpose(1, 2)


def gradients(output: Tensor, qkv: Sequence[Tensor]) -> tuple[Tensor, ...]:
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad(output, qkv, upstream.to(output.dtype))


def assert_near(output: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=0, check_dtype=False)


@settings(max_examples=40)
@given(SHAPES, st.integers(0, 99))
def test_blocks_are_dense_attention_with_a_mask(shapes: list[tuple[int, list[int]]], seed: int) -> None:
    spans = spans_of(*shapes)
    qkv = rows(spans, seed=seed)
    output, expected = packed(qkv, layout(spans, CPU)), dense(qkv, spans)
    assert_near(output, expected)
    assert_near(gradients(output, qkv), gradients(expected, qkv))


@pytest.mark.parametrize("scale", [20.0, 0.01])
def test_blocks_hold_where_attention_is_sharp_or_flat(scale: float) -> None:
    """The halves' log-sums are then far apart, or differ by their numbers of keys alone."""
    spans = spans_of((70, [40, 1, 65]), (3, [130]))
    query, key, value = (tensor.detach() for tensor in rows(spans))
    qkv = [tensor.requires_grad_() for tensor in (scale * query, key, value)]
    exact = [tensor.detach().double().requires_grad_() for tensor in qkv]
    output, expected = packed(qkv, layout(spans, CPU)), dense(exact, spans)
    assert_near(output, expected, 1e-4)
    for gradient, wanted in zip(gradients(output, qkv), gradients(expected, exact), strict=True):
        assert_near(gradient / wanted.abs().max(), wanted / wanted.abs().max(), 1e-4)


def test_blocks_take_bfloat16() -> None:
    spans = spans_of((20, [9, 4, 0, 7]), (5, [3, 3]))
    qkv = rows(spans)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in qkv]
    output, expected = packed(halves, layout(spans, CPU)), dense(qkv, spans)
    assert output.dtype == torch.bfloat16
    assert_near(output, expected, 0.03)
    assert_near(gradients(output, halves), gradients(expected, qkv), 0.1)


@settings(max_examples=40)
@given(SHAPES)
def test_the_mask_of_flex_attention_is_that_of_the_spans(shapes: list[tuple[int, list[int]]]) -> None:
    spans = spans_of(*shapes)
    places_T, zero = torch.arange(spans[-1].end), torch.tensor(0)
    found_TT = visibility(spans, CPU)(zero, zero, places_T[:, None], places_T[None])
    assert torch.equal(found_TT, dense_mask(spans))


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(0, 200), min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
def test_the_block_mask_is_that_of_every_pair(shapes: list[tuple[int, list[int]]]) -> None:
    spans = spans_of(*shapes)
    tokens = spans[-1].end
    torchs = create_block_mask(visibility(spans, CPU), None, None, tokens, tokens, device="cpu")
    for value, wanted in zip(block_mask(spans, CPU).as_tuple(), torchs.as_tuple(), strict=True):
        if isinstance(wanted, Tensor):
            assert isinstance(value, Tensor)
            assert torch.equal(value, wanted)
        else:
            assert callable(wanted) or value == wanted


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_block_mask_goes_through_flex_attention() -> None:
    """As on a GPU, but not compiled."""
    spans = spans_of((70, [40, 1, 65]), (3, [130, 0, 7]))
    tokens = spans[-1].end
    mask = create_block_mask(visibility(spans, CPU), None, None, tokens, tokens, device="cpu")
    qkv = [tensor.detach() for tensor in rows(spans)]
    assert_near(packed(qkv, Layout(block_mask=mask)), dense(qkv, spans))


def test_a_completion_is_blind_to_its_neighbours() -> None:
    """Whatever they hold, not one bit of it changes."""
    spans = spans_of((6, [4, 3, 5]), (2, [3]))
    qkv = rows(spans)
    changed = [tensor.detach().clone() for tensor in qkv]
    for tensor in changed:
        tensor[:, :, 6:10] += 5
        tensor[:, :, 13:] -= 5
    before, after = packed(qkv, layout(spans, CPU)), packed(changed, layout(spans, CPU))
    assert torch.equal(before[:, :6], after[:, :6])
    assert torch.equal(before[:, 10:13], after[:, 10:13])
    assert not torch.isclose(before[:, 6:10], after[:, 6:10]).all()
