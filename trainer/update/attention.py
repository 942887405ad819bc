"""Attention of a pack: every completion sees its prompt and itself, and the prompt is there once.

Registered with transformers under `NAME`, so the model's own code runs unchanged; the pack's `Layout` reaches it as the
keyword `layout`. Two ways, equal to plain attention over separate sequences:

blocks  on CPU. A completion's keys are its prompt's and its own; both halves are computed by the flash kernel and put
        together by their log-sums, as ring attention does. Exactly the pairs that exist, nothing of size T x T.
flex    on CUDA. `flex_attention`, compiled, with a BlockMask of the same pairs.

Left out: dropout, sliding windows, caches.

Axes: T tokens of a pack, H heads, D head size, W the longest of some completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from trainer.update.packing import Span

NAME = "prefix_shared"

_BLOCK = 128
"""Queries and keys of a block in a BlockMask: flex_attention's default, and a multiple of its kernels' tiles."""

_KERNEL_OPTIONS: Any = {"BACKEND": "TRITON"}
"""Not the kernel for decoding, which a pack of fewer than 128 tokens would get, and which does not take these masks."""

_forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A rollout's rows: its prompt, and its completions as a batch of rows of one width."""

    start: int
    middle: int
    """Where the prompt ends and the completions begin."""
    end: int
    count: int
    width: int
    gather: Tensor | None
    """Into a batch of `count` x `width` rows, counted from `middle`; None where all have the same length."""
    scatter: Tensor | None
    """Back: which rows of the batch are real."""

    def batch(self, rows_HTD: Tensor) -> Tensor:
        """The completions' rows, padded with real but foreign ones at their ends, which no real row sees."""
        H, _, D = rows_HTD.shape
        completions_HRD = rows_HTD[:, self.middle : self.end]
        if self.gather is not None:
            completions_HRD = completions_HRD[:, self.gather]
        return completions_HRD.reshape(H, self.count, self.width, D).transpose(0, 1)

    def unbatch(self, rows_GHWD: Tensor) -> Tensor:
        G, H, W, D = rows_GHWD.shape
        rows = rows_GHWD.transpose(0, 1).reshape(H, G * W, D)
        return rows if self.scatter is None else rows[:, self.scatter]

    def zero_padding(self, rows_GHWD: Tensor) -> Tensor:
        """What comes in for padded rows must not move the real ones."""
        if self.scatter is None:
            return rows_GHWD
        real = torch.zeros(self.count * self.width, dtype=rows_GHWD.dtype)
        real[self.scatter] = 1
        return rows_GHWD * real.view(self.count, 1, self.width, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How the tokens of a pack see each other, in the form that its device wants."""

    blocks: tuple[Block, ...] = ()
    block_mask: BlockMask | None = None


def layout(spans: Sequence[Span], device: torch.device) -> Layout:
    if device.type == "cpu":
        return Layout(blocks=tuple(_block(span) for span in spans))
    return Layout(block_mask=block_mask(spans, device))


def block_mask(spans: Sequence[Span], device: torch.device) -> BlockMask:
    """What `create_block_mask` finds, counted from the spans: nothing of size T x T, and nothing compiled."""
    start_T, middle_T, piece_T = _bounds(spans, device)
    T = spans[-1].end
    edges_K = torch.arange(0, T, _BLOCK, device=device)
    # Keys that token t sees in key block k: those of its prompt, and those of its own piece up to itself.
    keys_TK = _overlap(start_T, middle_T, edges_K) + _overlap(piece_T, torch.arange(1, T + 1, device=device), edges_K)
    # Rows past the end see nothing, so the last block of queries is never taken for a full one.
    pairs_QK = torch.nn.functional.pad(keys_TK, (0, 0, 0, -T % _BLOCK)).unflatten(0, (-1, _BLOCK)).sum(1)
    is_full_QK = pairs_QK == _BLOCK**2  # a full block needs no mask: the kernel skips `visibility` there
    tables = (*_ordered((pairs_QK > 0) & ~is_full_QK), *_ordered(is_full_QK))
    return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=_BLOCK, mask_mod=visibility(spans, device), seq_lengths=(T, T))


def visibility(spans: Sequence[Span], device: torch.device) -> Any:
    """Whether token q sees token k, as flex_attention asks."""
    start_T, middle_T, piece_T = _bounds(spans, device)

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((k >= piece_T[q]) | ((k >= start_T[q]) & (k < middle_T[q])))

    return sees


def _bounds(spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A token sees its prompt, from `start` up to `middle`, and its own piece, from `piece` to itself."""
    pieces: list[tuple[int, int, int, int]] = []
    for span in spans:
        piece = span.start + span.prompt
        pieces.append((span.start, span.start, span.start, span.prompt))  # a prompt is its own piece, with no other
        for length in span.completions:
            pieces.append((span.start, span.start + span.prompt, piece, length))
            piece += length
    *bounds, lengths = np.array(pieces, np.int32).T
    start_T, middle_T, piece_T = (torch.from_numpy(bound.repeat(lengths)).to(device) for bound in bounds)
    return start_T, middle_T, piece_T


def _overlap(first_T: Tensor, last_T: Tensor, edges_K: Tensor) -> Tensor:
    """How many keys of each block lie from the one up to the other."""
    return (torch.minimum(last_T[:, None], edges_K + _BLOCK) - torch.maximum(first_T[:, None], edges_K)).clamp(min=0)


def _ordered(is_there_QK: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first [1, 1, Q(, K)]."""
    order_QK = is_there_QK.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return is_there_QK.sum(-1, dtype=torch.int32)[None, None], order_QK.to(torch.int32)[None, None]


def prefix_shared(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, H, T, D] in, [1, T, H, D] out."""
    assert len(query) == 1, "a pack is one row"
    assert attention_mask is None
    if layout.block_mask is not None:
        # A float is one more variable of the compiled graph; None is the same number, and no variable.
        scale = None if scaling == query.shape[-1] ** -0.5 else scaling
        enable_gqa = query.shape[1] != key.shape[1]
        # Inside a compiled layer it is part of that graph already.
        attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        output = attend(
            query,
            key,
            value,
            block_mask=layout.block_mask,
            scale=scale,
            enable_gqa=enable_gqa,
            kernel_options=_KERNEL_OPTIONS,
        )
        return output.transpose(1, 2), None
    repeats = query.shape[1] // key.shape[1]  # the CPU's kernel takes no grouped heads
    key_HTD, value_HTD = (rows[0].repeat_interleave(repeats, dim=0) for rows in (key, value))
    output_HTD = _Blocks.apply(query[0], key_HTD, value_HTD, scaling, layout.blocks)
    return output_HTD.transpose(0, 1)[None], None


@cache
def _compiled_flex() -> Any:
    """One graph for all lengths. `fullgraph`: past the limit of graphs an error, not a matrix of all scores."""
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scaling: float, blocks: tuple[Block, ...]) -> Tensor:
        output_HTD, total_HT = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        for block in blocks:
            prompt, rest = slice(block.start, block.middle), slice(block.middle, block.end)
            keys, values = k[None, :, prompt], v[None, :, prompt]
            output_HTD[:, prompt], total_HT[:, prompt] = _attend(q[None, :, prompt], keys, values, scaling, True)
            if not block.count:
                continue
            # Two sets of keys, each with its output o and log-sum L:
            # L = log(e^L1 + e^L2),  o = e^(L1 - L) o1 + e^(L2 - L) o2
            of_prompt_HRD, of_prompt_HR = _attend(q[None, :, rest], keys, values, scaling, False)
            batched, batched_sums = _forward(*(block.batch(rows) for rows in (q, k, v)), 0.0, True, scale=scaling)
            of_piece_HRD, of_piece_HR = block.unbatch(batched), block.unbatch(batched_sums[..., None])[..., 0]
            both_HR = torch.logaddexp(of_prompt_HR, of_piece_HR)
            output_HTD[:, rest] = of_prompt_HRD * _share(of_prompt_HR, both_HR, q)
            output_HTD[:, rest] += of_piece_HRD * _share(of_piece_HR, both_HR, q)
            total_HT[:, rest] = both_HR
        ctx.save_for_backward(q, k, v, output_HTD, total_HT)
        ctx.scaling, ctx.blocks = scaling, blocks
        return output_HTD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """With the log-sums of all that a row saw, each half gives its share of the whole gradient."""
        q, k, v, output, total = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        results = tuple(torch.empty_like(rows) for rows in (q, k, v))
        for block in ctx.blocks:
            prompt, rest = slice(block.start, block.middle), slice(block.middle, block.end)
            rows = [tensor[None, :, prompt] for tensor in (gradient, q, k, v, output, total)]
            prompt_parts = _backward(*rows, 0.0, True, scale=ctx.scaling)
            for result, part in zip(results, prompt_parts, strict=True):
                result[:, prompt] = part[0]
            if not block.count:
                continue
            _, _, keys, values, _, _ = rows
            gradient_R, q_R, output_R, total_R = (rows[None, :, rest] for rows in (gradient, q, output, total))
            seen = _backward(gradient_R, q_R, keys, values, output_R, total_R, 0.0, False, scale=ctx.scaling)
            batched = [block.batch(rows) for rows in (gradient, q, k, v, output)]
            piece_parts = _backward(
                block.zero_padding(batched[0]),
                *batched[1:],
                block.batch(total[..., None])[..., 0],
                0.0,
                True,
                scale=ctx.scaling,
            )
            for result, part in zip(results, piece_parts, strict=True):
                result[:, rest] = block.unbatch(part)
            # Queries of the completions get both halves; the prompt's keys and values get what all completions add.
            results[0][:, rest] += seen[0][0]
            results[1][:, prompt] += seen[1][0]
            results[2][:, prompt] += seen[2][0]
        return (*results, None, None)


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, is_causal: bool) -> tuple[Tensor, Tensor]:
    output, total = _forward(q, k, v, 0.0, is_causal, scale=scaling)
    return output[0], total[0]


def _share(part_HR: Tensor, both_HR: Tensor, like: Tensor) -> Tensor:
    return (part_HR - both_HR).exp().to(like.dtype)[..., None]


def _block(span: Span) -> Block:
    lengths = [length for length in span.completions if length]  # one of a single token has nothing in the row
    middle, count, width = span.start + span.prompt, len(lengths), max(lengths, default=0)
    gather = scatter = None
    if any(length != width for length in lengths):
        starts = [sum(lengths[:number]) for number in range(count)]
        # A short completion is filled up with its own last row: any row of the pack would do, this one is near.
        padded = [start + min(column, length - 1) for start, length in zip(starts, lengths, strict=True)
                  for column in range(width)]  # fmt: skip
        real = [number * width + column for number, length in enumerate(lengths) for column in range(length)]
        gather, scatter = torch.tensor(padded), torch.tensor(real)
    return Block(span.start, middle, span.end, count, width, gather, scatter)


AttentionInterface.register(NAME, prefix_shared)
