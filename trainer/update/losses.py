"""The loss of one part. Pure functions of tensors; which tokens count, and how much, is decided before.

    objective_t = w_t min(rho_t A_t, clip(rho_t, 1 - eps_low, 1 + eps_high) A_t)
    rho = exp(lp - lp_old), w = min(exp(lp_old - lp_engine), cap), detached

A teacher's k likeliest tokens give, instead of an advantage, a divergence with a gradient of its own: the reverse KL
between student and teacher over k + 1 bins, where the last bin is all that the k leave over.

Axes: N tokens of a part, k likeliest tokens of a teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_LEAST = 1e-6
"""Of the bin that is left over: rounding can make k probabilities sum to 1 and more."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What the clipped objective made of each token."""

    loss_N: Tensor
    ratio_N: Tensor
    is_clipped_N: Tensor
    importance_N: Tensor


def surrogate(
    logprobs_N: Tensor,
    old_N: Tensor,
    engine_N: Tensor,
    advantages_N: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    importance_cap: float | None,
) -> Surrogate:
    """`importance_cap` None: no weight for the difference between trainer and engine."""
    ratio_N = (logprobs_N - old_N).exp()
    free_N, bounded_N = ratio_N * advantages_N, ratio_N.clamp(1 - eps_low, 1 + eps_high) * advantages_N
    importance_N = torch.ones_like(old_N)
    if importance_cap is not None:
        importance_N = (old_N - engine_N).exp().clamp(max=importance_cap)
    loss_N = -importance_N * torch.minimum(free_N, bounded_N)
    return Surrogate(loss_N, ratio_N.detach(), (bounded_N < free_N).detach(), importance_N)


def binned_reverse_kl(student_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
    """KL(student || teacher) over the teacher's k likeliest tokens and one bin for the rest [N]."""
    student_rest_N, teacher_rest_N = _rest(student_Nk), _rest(teacher_Nk)
    kl_Nk = student_Nk.exp() * (student_Nk - teacher_Nk)
    return kl_Nk.sum(-1) + student_rest_N.exp() * (student_rest_N - teacher_rest_N)


def _rest(logprobs_Nk: Tensor) -> Tensor:
    return (1 - logprobs_Nk.exp().sum(-1)).clamp(min=_LEAST).log()


def token_weights(
    lengths: Sequence[int], *, num_sequences: int, num_tokens: int, normalise: Literal["sequence", "token"]
) -> Tensor:
    """Of each token of completions with these lengths, in a part of so many sequences and tokens [N].

    The part's numbers are those of the whole batch, over all packs and processes.
    """
    lengths_S = torch.tensor(lengths)
    if normalise == "token":
        return torch.full((int(lengths_S.sum()),), 1 / num_tokens)
    return (1 / (num_sequences * lengths_S.float())).repeat_interleave(lengths_S)
