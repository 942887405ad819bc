"""The arithmetic of a merge, on one projection's deltas and their factors.

Axes: O outputs, I inputs, r a branch's rank, R the merged rank (at first the sum of the branches'), K branches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


def truncated(up_OR: Tensor, down_RI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of a rank, by the singular values of a small matrix between two orthonormal ones."""
    # B A = Q_B (R_B R_A^T) Q_A^T, and the middle is R by R: the delta itself, O by I, is never decomposed. In
    # float64, so that the factors are exact to float32.
    left_OR, up_RR = torch.linalg.qr(up_OR.double())
    right_IR, down_RR = torch.linalg.qr(down_RI.double().T)
    left_RR, values_R, right_RR = torch.linalg.svd(up_RR @ down_RR.T, full_matrices=False)
    root_r = values_R[:rank].sqrt()  # half of each value to B and half to A, so that both are of one size
    up_Or = left_OR @ (left_RR[:, :rank] * root_r)
    down_rI = (root_r[:, None] * right_RR[:rank]) @ right_IR.T
    short = rank - values_R[:rank].numel()  # a projection may be smaller than the rank
    return pad(up_Or, (0, short)).float(), pad(down_rI, (0, 0, 0, short)).float()


def ties(deltas: Sequence[Tensor], thresholds: Sequence[float], shares: Sequence[float]) -> Tensor:
    """Trim below the thresholds, elect a sign, and take the weighted mean of the entries that have it.

    The same for some rows as for all, because the thresholds are given.
    """
    trimmed = [delta * (delta.abs() >= threshold) for delta, threshold in zip(deltas, thresholds, strict=True)]
    vote, total, weight = (torch.zeros_like(deltas[0]) for _ in range(3))
    # sign = sign(sum_k w_k delta_k): large entries have more of a vote than small ones, as in the paper.
    for delta, share in zip(trimmed, shares, strict=True):
        vote.add_(delta, alpha=share)
    vote.sign_()
    # sum of w_k delta_k over the agreeing k, divided by the sum of their w_k: the rest does not thin the mean out.
    for delta, share in zip(trimmed, shares, strict=True):
        agrees = (delta.sign() == vote).to(delta.dtype)
        total.addcmul_(delta, agrees, value=share)
        weight.add_(agrees, alpha=share)
    return total / weight.where(weight > 0, 1)  # where nobody agrees, the total is 0


def trim_threshold(delta: Tensor, density: float) -> float:
    """The least size of the largest entries, of which there are `density` of all."""
    index = delta.numel() - max(1, int(density * delta.numel()))
    # A partition finds one place in linear time; a projection of the 8B base has 50 million entries to sort.
    return float(np.partition(delta.abs().flatten().numpy(), index)[index])


def inner_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """<B_j A_j, B_k A_k> for all branches [K, K], from products of rank by rank: no delta is made."""
    up_OR = torch.cat([up for up, _ in pairs], dim=1).double()
    down_RI = torch.cat([down for _, down in pairs]).double()
    # <B_j A_j, B_k A_k> = trace(A_j^T B_j^T B_k A_k) = sum over (r, s) of (B_j^T B_k) * (A_j A_k^T)
    product_RR = (up_OR.T @ up_OR) * (down_RI @ down_RI.T)
    ranks = [down.shape[0] for _, down in pairs]
    return torch.stack([torch.stack([b.sum() for b in a.split(ranks, 1)]) for a in product_RR.split(ranks)])
