"""One training step's mathematics on the policy: loss terms in, an updated adapter and its measurements out.

    L = sum over terms of  u * sum_t w_t * loss_t    w_t = 1 / (S * |y|) or 1 / N, of the term's whole batch
                                                     u = 1, or S / (the S of the largest term)
    loss_t = surrogate(advantage_t)                  rewards, sampled teachers, the control
           + beta * KL_t(student || teacher)         teachers with their k likeliest tokens

Rollouts are packed, every pack goes forward and backward, and the gradients of all packs add up to that of the whole
batch, because the denominators S and N are the whole batch's.

Two things end differently. A loss or gradient that is not finite skips the step: the adapter stays as it was, and why
is told. A device that is out of memory halves the token budget, and the step is repeated.

Axes: N tokens that are predicted in a pack, k a teacher's likeliest tokens, K = 1 + k scored tokens at a position.
"""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Self

import numpy as np
import torch
from torch import Tensor

from adapters.errors import UserError
from trainer.parts import Completion, Floats, LossTerm, Rollout
from trainer.recipe import LossConfig
from trainer.update.losses import binned_reverse_kl, surrogate, token_weights
from trainer.update.optim import Optimiser
from trainer.update.packing import Pack, pack, share_out
from trainer.update.policy import Policy
from trainer.update.ranks import SINGLE_PROCESS, Ranks

LEAST_BUDGET = 64
"""Tokens of a pack below which the step is given up: a device without room for so few has no room for anything."""
COSINE = "cosine"
"""The metric `native/cosine:text:image`: how far the gradients of two capabilities of a mixed branch agree."""

Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Update:
    """What one training step did."""

    metrics: Mapping[str, float]
    """`TERM/NAME`, of the first update where a batch has several; `ratio` and `clip` are those of the last."""
    skipped: str | None
    """Why the adapter was left as it was."""
    budget: int
    """Tokens of a pack that the device has room for."""


class _NotFiniteError(Exception):
    """Says what is not finite."""


class _NoRoomError(Exception):
    """Some process is out of memory."""


@dataclass(frozen=True, slots=True)
class TokenSums:
    """Sums over tokens, as scalars on the device: means are taken once, at the end, over all packs and processes."""

    tokens: Tensor
    loss: Tensor
    ratio: Tensor
    clip: Tensor
    mismatch: Tensor
    capped: Tensor
    entropy: Tensor
    advantage: Tensor
    advantage_squared: Tensor
    kl: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> Self:
        # float64: sums over 10^6 tokens lose digits in float32, and they are compared between runs.
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in fields(cls)))

    def __add__(self, addend: "TokenSums") -> "TokenSums":
        return TokenSums(*map(torch.add, self.by_name().values(), addend.by_name().values()))

    def by_name(self) -> dict[str, Tensor]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def metrics(self) -> dict[str, float]:
        """Means over the tokens that were computed; the loss is a sum, its weights divide already."""
        sums = {name: float(value) for name, value in self.by_name().items()}
        tokens = max(1.0, sums.pop("tokens"))
        loss = sums.pop("loss")
        means = {name: value / tokens for name, value in sums.items()}
        # std = sqrt(E[A^2] - E[A]^2), which rounding can make slightly negative under the root
        std = max(0.0, means.pop("advantage_squared") - means["advantage"] ** 2) ** 0.5
        return {"loss": loss, "advantage_std": std, **means}


@dataclass(frozen=True, slots=True, eq=False)
class PackedTerm:
    """A term of the loss as this process computes it: its packs, by capability."""

    term: LossTerm
    weight: float
    packs: Mapping[str, list[Pack]]
    passes: Mapping[str, int]
    """The most packs of a capability that any process has."""
    old_logprobs: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])
    """Log-probabilities before the first update, of each pack, once they are known."""


def update(
    policy: Policy,
    adapter: str,
    optimiser: Optimiser,
    terms: Sequence[LossTerm],
    *,
    loss: LossConfig,
    budget: int,
    ranks: Ranks = SINGLE_PROCESS,
) -> Update:
    """One batch, `loss.updates_per_batch` times. `terms` are the same in every process."""
    # With one update nothing has changed when something fails: only several need a copy to return to.
    before = optimiser.snapshot() if loss.updates_per_batch > 1 else None
    try:
        while budget >= LEAST_BUDGET:
            try:
                weights = part_weights(terms, loss)
                packed = [pack_term(*pair, budget, ranks) for pair in zip(terms, weights, strict=True)]
                metrics: dict[str, float] = {}
                for _ in range(loss.updates_per_batch):
                    gradients, measured = batch_gradients(policy, adapter, packed, loss, ranks)
                    optimiser.step(gradients)
                    # Later updates start from moved weights, so the first one's measurements stand. The ratio is the
                    # exception: it is 1 in the first, and says how far the policy went only in the last.
                    moved = {name: value for name, value in measured.items() if name.endswith(("/ratio", "/clip"))}
                    metrics = measured | metrics | moved
                return Update(metrics, None, budget)
            except _NotFiniteError as error:
                # Found before the optimiser steps, so only earlier updates of this batch need be taken back.
                optimiser.restore(before)
                return Update({}, str(error), budget)
            except _NoRoomError:
                optimiser.restore(before)
                budget //= 2  # the learner keeps it for the steps to come: a device is asked for too much once
        raise UserError("the device is out of memory with one short sequence; free some of it")
    finally:
        policy.vision.forget()  # features are kept for a batch: several packs and updates share a picture


def part_weights(terms: Sequence[LossTerm], loss: LossConfig) -> list[float]:
    """The weight of each part of a step. A teacher's part has often half the rollouts of the native one, and a gradient
    of twice its norm: counted by rollouts, rewards keep their say in distillation steps."""
    largest = max(term.num_sequences for term in terms)
    if loss.part_weights == "equal" or largest == 0:
        return [1.0] * len(terms)
    return [term.num_sequences / largest for term in terms]


def pack_term(term: LossTerm, weight: float, budget: int, ranks: Ranks) -> PackedTerm:
    """Packs of one capability each, so that their gradients can be told apart; of all packs this process's share."""
    by_capability: dict[str, list[Rollout]] = {}
    for rollout in term.rollouts:
        by_capability.setdefault(rollout.prompt.capability, []).append(rollout)
    packs: dict[str, list[Pack]] = {}
    passes: dict[str, int] = {}
    # A term without rollouts is measured too, as zeros: metrics of a step have the same names whatever it drew.
    for capability, rollouts in (by_capability or {"": []}).items():
        # A prompt whose completions all got one reward moves nothing. It counts in the denominators all the same.
        packs_of_all = pack([rollout for rollout in rollouts if has_signal(rollout)], budget)
        # Every process packs the whole batch and takes its share, so nobody has to be told which.
        shares = share_out(packs_of_all, ranks.count)
        packs[capability] = [packs_of_all[index] for index in shares[ranks.rank]]
        passes[capability] = max(map(len, shares))
    return PackedTerm(term, weight, packs, passes)


def has_signal(rollout: Rollout) -> bool:
    return any(completion.top_k is not None or advantages_of(completion).any() for completion in rollout.completions)


def advantages_of(completion: Completion) -> Floats:
    assert completion.advantages_C is not None  # `loss_term` leaves the others out
    return completion.advantages_C


def batch_gradients(
    policy: Policy, adapter: str, packed_terms: Sequence[PackedTerm], loss: LossConfig, ranks: Ranks
) -> tuple[Gradients, dict[str, float]]:
    """The gradients of the whole loss over all processes, and what each term measured."""
    parameters = policy.adapters.parameters(adapter)
    total: Gradients = {}
    metrics: dict[str, float] = {}
    for packed in packed_terms:
        sums, by_capability = TokenSums.zeros(policy.device), dict[str, Gradients]()
        for capability, packs in packed.packs.items():
            with same_room_in_all_processes(policy, adapter, ranks):
                for index, row in enumerate(packs):
                    old_N = packed.old_logprobs.get((capability, index))
                    pack_sums, logprobs_N = forward_backward(policy, adapter, packed, row, old_N, loss)
                    # With one update a batch, the default, the policy that sampled is the policy that learns: the old
                    # log-probabilities are the ones just computed, and no pass is made for them.
                    packed.old_logprobs.setdefault((capability, index), logprobs_N)
                    sums = sums + pack_sums
                for _ in range(packed.passes[capability] - len(packs)):
                    policy.keep_step(adapter)
            by_capability[capability] = take_gradients(parameters)
            ranks.sum(by_capability[capability])
        ranks.sum(sums.by_name())
        gradients = added(by_capability.values())
        measured = sums.metrics() | {"grad_norm": norm(gradients)}
        # Asked term by term, so that the message can name the one that broke.
        for quantity in ("loss", "grad_norm"):
            if not math.isfinite(measured[quantity]):
                raise _NotFiniteError(f"{packed.term.name}: {quantity} is {measured[quantity]}")
        measured |= cosines(by_capability)
        metrics |= {f"{packed.term.name}/{name}": value for name, value in measured.items()}
        total = added([total, gradients]) if total else gradients
    metrics["grad_norm"] = norm(total)
    return total, metrics


def forward_backward(
    policy: Policy, adapter: str, packed: PackedTerm, row: Pack, old_N: Tensor | None, loss: LossConfig
) -> tuple[TokenSums, Tensor]:
    """One pack through the policy. Its gradients are added to those of the parameters; its log-probabilities return."""
    device = policy.device
    completions = list(row.completions)
    # Completions end to end, in the order of the pack: position t of every array is the t-th predicted token.
    advantages_N = on_device([advantages_of(completion) for completion in completions], device)
    engine_N = on_device([completion.logprobs_C for completion in completions], device)
    weights_N = packed.weight * token_weights(
        [len(completion.ids_C) for completion in completions],
        num_sequences=packed.term.num_sequences,
        num_tokens=packed.term.num_tokens,
        normalise=loss.normalise,
    ).to(device)

    # The sampled token at each position, and behind it the teacher's k likeliest where the term has them.
    top_ks = [completion.top_k for completion in completions if completion.top_k is not None]
    chosen_NK = torch.from_numpy(row.targets_N)[:, None]
    if top_ks:
        chosen_NK = torch.cat([chosen_NK, on_device([top_k.ids_Ck for top_k in top_ks], chosen_NK.device)], dim=1)
    # All K at once: the hidden state of a position is computed once, and its logits never leave their chunk.
    scored = policy.logprobs(adapter, row, chosen_NK)
    logprobs_N = scored.chosen_NK[:, 0]
    if old_N is None:  # the first update: rho is 1, and only its gradient counts
        old_N = logprobs_N.detach()

    # loss_t = -w_t * min(rho_t A_t, clip(rho_t, 1 - eps_low, 1 + eps_high) A_t)   + beta * w_t * KL_t
    objective = surrogate(
        logprobs_N,
        old_N,
        engine_N,
        advantages_N,
        eps_low=loss.eps_low,
        eps_high=loss.eps_high,
        importance_cap=loss.importance_cap if loss.importance_weight else None,
    )
    loss_N, kl_N = objective.loss_N, torch.zeros_like(logprobs_N)
    if top_ks:
        kl_N = binned_reverse_kl(scored.chosen_NK[:, 1:], on_device([top_k.logprobs_Ck for top_k in top_ks], device))
        loss_N = loss_N + top_ks[0].beta * objective.importance_N * kl_N  # a term has one teacher, so one beta
    (loss_N * weights_N).sum().backward()

    per_token = {
        "tokens": torch.ones_like(logprobs_N),
        "loss": loss_N.detach() * weights_N,
        "ratio": objective.ratio_N,
        "clip": objective.is_clipped_N,
        "mismatch": (old_N - engine_N).abs(),
        "capped": objective.importance_N >= loss.importance_cap,
        "entropy": scored.entropy_N,
        "advantage": advantages_N,
        "advantage_squared": advantages_N**2,
        "kl": kl_N.detach(),
    }
    return TokenSums(**{name: value_N.double().sum() for name, value_N in per_token.items()}), logprobs_N.detach()


@contextmanager
def same_room_in_all_processes(policy: Policy, adapter: str, ranks: Ranks) -> Generator[None]:
    """Turns memory that one process lacks into `_NoRoomError` in all: they must halve the budget together."""
    is_full = False
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        # On a CPU PyTorch raises a plain RuntimeError whose text is all that tells it.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        if policy.is_sharded:  # the others wait for this process in the middle of a layer, and can agree on nothing
            raise UserError(
                "the device is out of memory in a pass with worker.shard; lower budget.tokens_per_micro_batch, or take "
                "more processes"
            ) from None
        is_full = True
    if ranks.any(is_full, policy.device):
        take_gradients(policy.adapters.parameters(adapter))  # what earlier packs have left there
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of the old sizes would stand in the way of smaller ones
        raise _NoRoomError


def take_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> Gradients:
    """The gradients, which are gone from the parameters; zeros where no pack of this process touched one."""
    gradients: Gradients = {}
    for key, parameter in parameters.items():
        # Zeros and not nothing: all processes sum the same tensors in the same order.
        gradients[key] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return gradients


def added(summands: Iterable[Gradients]) -> Gradients:
    first, *rest = summands
    return {key: sum((gradients[key] for gradients in rest), start=first[key]) for key in first}


def cosines(by_capability: Mapping[str, Gradients]) -> dict[str, float]:
    """Whether the capabilities of a mixed branch pull the same way: cos = <g_a, g_b> / (|g_a| |g_b|)."""
    values: dict[str, float] = {}
    for (a, gradients_a), (b, gradients_b) in combinations(by_capability.items(), 2):
        norms = norm(gradients_a) * norm(gradients_b)
        if norms > 0:  # a capability whose every group was decided has no direction
            product = sum(float((gradients_a[key] * gradients_b[key]).sum()) for key in gradients_a)
            values[f"{COSINE}:{a}:{b}"] = product / norms
    return values


def norm(gradients: Mapping[str, Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradients.values()))


def on_device(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays of several completions as one tensor, end to end."""
    return torch.from_numpy(np.concatenate(rows)).to(device)
