"""The loss of one term. Pure functions of tensors; which tokens count, and how much, is decided before.

    objective_t = w_t min(rho_t A_t, clip(rho_t, 1 - eps_low, 1 + eps_high) A_t)
    rho = exp(lp - lp_old), w = min(exp(lp_old - lp_engine), cap), detached

A teacher's k likeliest tokens give, instead of an advantage, a divergence with a gradient of its own: the reverse KL
between student and teacher over k + 1 bins, where the last bin is all that the k leave over.

Axes: N tokens of a term, S completions, k likeliest tokens of a teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LEAST_REST = 1e-6
"""The smallest probability of the bin that is left over: rounding can make k probabilities sum to 1 and more."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped objective of each token, and what it was made of."""

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
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - eps_low, 1 + eps_high) * advantages_N
    importance_N = torch.ones_like(old_N)
    if importance_cap is not None:
        # Truncated importance sampling: the engine that sampled rounds otherwise than the trainer that learns.
        importance_N = (old_N - engine_N).exp().clamp(max=importance_cap)
    loss_N = -importance_N * torch.minimum(free_N, bounded_N)
    return Surrogate(loss_N, ratio_N.detach(), (bounded_N < free_N).detach(), importance_N)


def binned_reverse_kl(student_Nk: Tensor, teacher_Nk: Tensor) -> Tensor:
    """KL(student || teacher) = sum_i s_i (log s_i - log t_i) over the teacher's k likeliest tokens and the rest [N]."""
    student_rest_N, teacher_rest_N = _rest(student_Nk), _rest(teacher_Nk)
    kl_Nk = student_Nk.exp() * (student_Nk - teacher_Nk)
    return kl_Nk.sum(-1) + student_rest_N.exp() * (student_rest_N - teacher_rest_N)


def _rest(logprobs_Nk: Tensor) -> Tensor:
    return (1 - logprobs_Nk.exp().sum(-1)).clamp(min=LEAST_REST).log()


def token_weights(
    lengths: Sequence[int], *, num_sequences: int, num_tokens: int, normalise: Literal["sequence", "token"]
) -> Tensor:
    """The weight of each token of completions with these lengths, in a term of so many sequences and tokens [N].

    The term's numbers are those of the whole batch, over all packs and processes.
    """
    lengths_S = torch.tensor(lengths)
    if normalise == "token":  # every token alike: long completions weigh more (DAPO)
        return torch.full((int(lengths_S.sum()),), 1 / num_tokens)
    # every completion alike: its tokens share 1 / S (GRPO)
    return (1 / (num_sequences * lengths_S.float())).repeat_interleave(lengths_S)
