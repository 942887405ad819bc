"""Log-probabilities of chosen tokens from hidden states, without the matrix of all logits.

Logits exist for one chunk of rows at a time, in float32. The output matrix is frozen, so the gradient of a row is
known but for one factor a chosen token: what the backward pass needs is computed while the chunk's logits are there,
and they are never made a second time.

Axes: N rows, K chosen tokens of a row, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK = {"cpu": 64, "cuda": 1024}
"""Rows whose logits exist at a time, enough for a full product: at Qwen's vocabulary 39 MB in float32, and 0.6 GB."""


class Logprobs(NamedTuple):
    chosen_NK: Tensor
    """With gradient."""
    entropy_N: Tensor
    """The entropy of the whole distribution, without gradient."""


def chosen_logprobs(hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> Logprobs:
    chosen_NK, entropy_N = _Chosen.apply(hidden_ND, output_VD, ids_NK)
    return Logprobs(chosen_NK, entropy_N)


class _Chosen(torch.autograd.Function):
    """d log p(y) / d hidden = sum_v (1[v = y] - p(v)) output[v], kept for a row's first token: a row of size D.

    Another token's differs from it by output[other] - output[first]. A token that is all but certain has a gradient
    that is all but zero: 1 - p(y) is made before anything is rounded, never as a difference of two large rows.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
        N = len(hidden_ND)
        chosen_NK = hidden_ND.new_empty(ids_NK.shape, dtype=torch.float32)
        entropy_N = hidden_ND.new_empty(N, dtype=torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        first_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        chunk = _CHUNK[hidden_ND.device.type]
        for start in range(0, N, chunk):
            part = slice(start, start + chunk)
            logprobs_RV = (hidden_ND[part] @ output_VD.T).float().log_softmax(-1)
            chosen_NK[part] = logprobs_RV.gather(-1, ids_NK[part])
            p_RV = logprobs_RV.exp()
            entropy_N[part] = -torch.linalg.vecdot(p_RV, logprobs_RV)
            if first_ND is not None:
                # In place, minus the factors of the rows: expm1(log p) = -(1 - p) at the first token, p(v) elsewhere.
                p_RV.scatter_(-1, ids_NK[part, :1], chosen_NK[part, :1].expm1())
                first_ND[part] = -(p_RV.to(output_VD.dtype) @ output_VD)
        if first_ND is not None:
            ctx.save_for_backward(first_ND, output_VD, ids_NK)
        ctx.mark_non_differentiable(entropy_N)
        return chosen_NK, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        first_ND, output_VD, ids_NK = ctx.saved_tensors
        factors_NK = gradients[0].to(output_VD.dtype)
        gradient_ND = gradients[0].sum(-1, keepdim=True).to(output_VD.dtype) * first_ND
        for column in range(1, ids_NK.shape[1]):  # one at a time: all of them would be N * K rows of size D
            apart_ND = output_VD[ids_NK[:, column]] - output_VD[ids_NK[:, 0]]
            gradient_ND.addcmul_(factors_NK[:, column, None], apart_ND)
        return gradient_ND, None, None
