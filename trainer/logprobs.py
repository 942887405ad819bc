"""Log-probabilities of chosen tokens from hidden states, without the matrix of all logits.

Logits exist for one chunk of rows at a time, in float32. The output matrix is frozen, so the gradient of a row is
known but for one factor a chosen token: what the backward pass needs is computed while the chunk's logits are there,
and they are never made a second time.

Axes: N rows, K chosen tokens of a row, D hidden size, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK_BYTES = 2**26
"""Of float32 logits."""


class Logprobs(NamedTuple):
    chosen_NK: Tensor
    """With gradient."""
    entropy_N: Tensor
    """Of the whole distribution, without gradient."""


def chosen_logprobs(hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> Logprobs:
    chosen_NK, entropy_N = _Chosen.apply(hidden_ND, output_VD, ids_NK)
    return Logprobs(chosen_NK, entropy_N)


class _Chosen(torch.autograd.Function):
    """d log p(y) / d hidden = output[y] - sum_v p(v) output[v]; the sum is kept, a row of size D."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, output_VD: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
        N, V = len(hidden_ND), len(output_VD)
        rows = max(16, _CHUNK_BYTES // (4 * V))
        chosen_NK = hidden_ND.new_empty(ids_NK.shape, dtype=torch.float32)
        entropy_N = hidden_ND.new_empty(N, dtype=torch.float32)
        needs_gradient = ctx.needs_input_grad[0]
        mean_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        for start in range(0, N, rows):
            part = slice(start, start + rows)
            logits_RV = (hidden_ND[part] @ output_VD.T).float()
            total_R = logits_RV.logsumexp(-1)
            chosen_NK[part] = logits_RV.gather(-1, ids_NK[part]) - total_R[:, None]
            p_RV = (logits_RV - total_R[:, None]).exp_()
            entropy_N[part] = total_R - torch.linalg.vecdot(p_RV, logits_RV)
            if mean_ND is not None:
                mean_ND[part] = p_RV.to(output_VD.dtype) @ output_VD
        if mean_ND is not None:
            ctx.save_for_backward(mean_ND, output_VD, ids_NK)
        ctx.mark_non_differentiable(entropy_N)
        return chosen_NK, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        mean_ND, output_VD, ids_NK = ctx.saved_tensors
        factors_NK = gradients[0].to(output_VD.dtype)
        gradient_ND = -factors_NK.sum(-1, keepdim=True) * mean_ND
        for column in range(ids_NK.shape[1]):  # one at a time: all of them would be N * K rows of size D
            gradient_ND.addcmul_(factors_NK[:, column, None], output_VD[ids_NK[:, column]])
        return gradient_ND, None, None
