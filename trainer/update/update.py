"""One training step's mathematics on the policy: parts in, an updated adapter and its measurements out.

The parts are packed, every pack goes forward and backward, and the gradients of all packs add up to that of the whole
batch, because denominators are the whole batch's. With one update a batch, the default, the old log-probabilities are
the ones just computed: no pass is made for them. A group whose advantages are all 0 moves nothing and is not computed.

Two things end differently. A loss, gradient or log-probability that is not finite skips the step: the adapter stays
as it was, and why is told. A device that is out of memory halves the token budget, and the step is repeated.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
import torch
from torch import Tensor

from adapters.errors import UserError
from trainer.parts import Group, LossTerm
from trainer.recipe import LossConfig
from trainer.update.losses import binned_reverse_kl, surrogate, token_weights
from trainer.update.optim import Optimiser
from trainer.update.packing import Pack, pack, share_out
from trainer.update.policy import Policy
from trainer.update.ranks import SINGLE_PROCESS, Ranks

LEAST_BUDGET = 64
COSINE = "cosine"
"""Of the gradients of two capabilities of a mixed branch: the metric `native/cosine:text:image`."""

Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Update:
    """What one training step did."""

    metrics: Mapping[str, float]
    """`PART/NAME`, of the first update where a batch has several; `ratio` and `clip` are those of the last."""
    skipped: str | None
    """Why the adapter was left as it was."""
    budget: int
    """Tokens of a pack that the device has room for."""


class _NotFiniteError(Exception):
    """Says what is not finite."""


class _NoRoomError(Exception):
    """Some process is out of memory."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Those groups of a part that are of one kind, as this process computes them."""

    part: LossTerm
    kind: str
    packs: list[Pack]
    old: list[Tensor]
    """Log-probabilities before the first update, of each pack, once they are known."""


def update(
    policy: Policy,
    adapter: str,
    optimiser: Optimiser,
    parts: Sequence[LossTerm],
    *,
    loss: LossConfig,
    budget: int,
    ranks: Ranks = SINGLE_PROCESS,
) -> Update:
    """`parts` are the same in every process."""
    before = optimiser.snapshot() if loss.updates_per_batch > 1 else None  # one update fails before it changes anything
    try:
        while budget >= LEAST_BUDGET:
            try:
                return Update(_updates(policy, adapter, optimiser, parts, loss, budget, ranks), None, budget)
            except _NotFiniteError as error:
                optimiser.restore(before)
                return Update({}, str(error), budget)
            except _NoRoomError:
                optimiser.restore(before)
                budget //= 2
        raise UserError("the device is out of memory with one short sequence; free some of it")
    finally:
        policy.vision.forget()


def _updates(
    policy: Policy,
    adapter: str,
    optimiser: Optimiser,
    parts: Sequence[LossTerm],
    loss: LossConfig,
    budget: int,
    ranks: Ranks,
) -> dict[str, float]:
    works = [_work(part, kind, budget, ranks) for part in parts for kind in _kinds(part)]
    metrics: dict[str, float] = {}
    for _ in range(loss.updates_per_batch):
        gradients, measured = _gradients(policy, adapter, works, loss, ranks)
        optimiser.step(gradients)
        moved = {name: value for name, value in measured.items() if name.endswith(("/ratio", "/clip"))}
        metrics = measured | metrics | moved
    return metrics


def _kinds(part: LossTerm) -> Sequence[str]:
    """At least one, so that a part without groups is measured too."""
    return list(dict.fromkeys(group.kind for group in part.groups)) or [""]


def _work(part: LossTerm, kind: str, budget: int, ranks: Ranks) -> _Work:
    packs = pack([group for group in part.groups if group.kind == kind and _teaches(group)], budget)
    return _Work(part, kind, [packs[number] for number in share_out(packs, ranks.count)[ranks.rank]], [])


def _teaches(group: Group) -> bool:
    return any(target.bins is not None or target.advantages_C.any() for target in group.targets)


def _gradients(
    policy: Policy, adapter: str, works: Sequence[_Work], loss: LossConfig, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of the whole loss, and what each part measured."""
    parameters = policy.adapters.parameters(adapter)
    total: Gradients = {}
    metrics: dict[str, float] = {}
    for name, own in groupby(works, lambda work: work.part.name):
        sums, by_kind = torch.zeros(len(SUMS), dtype=torch.float64, device=policy.device), dict[str, Gradients]()
        for work in own:
            sums += _with_room(policy, adapter, work, loss, ranks)
            by_kind[work.kind] = {key: _taken(parameter) for key, parameter in parameters.items()}
            ranks.sum(by_kind[work.kind])
        ranks.sum({"sums": sums})
        cosines = dict(_cosines(by_kind))
        gradients = _added(list(by_kind.values()))
        measured = _measured(sums) | {"grad_norm": _norm(gradients)}
        for what in ("loss", "grad_norm"):
            if not math.isfinite(measured[what]):
                raise _NotFiniteError(f"{name}: {what} is {measured[what]}")
        metrics |= {f"{name}/{what}": value for what, value in (measured | cosines).items()}
        total = _added([total, gradients]) if total else gradients
    metrics["grad_norm"] = _norm(total)
    return total, metrics


def _added(several: Sequence[Gradients]) -> Gradients:
    """Into the first."""
    first, *others = several
    for other in others:
        for key, one in other.items():
            first[key].add_(one)
    return first


def _cosines(by_kind: Mapping[str, Gradients]) -> Iterator[tuple[str, float]]:
    """Whether the capabilities of a mixed branch pull the same way."""
    for (a, one), (b, other) in combinations(by_kind.items(), 2):
        norm = _norm(one) * _norm(other)
        if norm > 0:
            yield f"{COSINE}:{a}:{b}", sum(float((one[key] * other[key]).sum()) for key in one) / norm


def _norm(gradients: Mapping[str, Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(gradients.values()))


def _taken(parameter: torch.nn.Parameter) -> Tensor:
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient


def _with_room(policy: Policy, adapter: str, work: _Work, loss: LossConfig, ranks: Ranks) -> Tensor:
    """Forward and backward through this process's packs; all processes learn whether one had no room for it."""
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=policy.device)
    full = False
    try:
        for number, one in enumerate(work.packs):
            sums += _through(policy, adapter, work, number, one, loss)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        full = True
    if ranks.any(full, policy.device):
        for parameter in policy.adapters.parameters(adapter).values():
            parameter.grad = None
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
        raise _NoRoomError
    return sums


SUMS = ("tokens", "loss", "ratio", "clip", "mismatch", "capped", "entropy", "advantage", "advantage_squared", "kl")
"""Added up over the tokens of a part."""


def _through(policy: Policy, adapter: str, work: _Work, number: int, one: Pack, loss: LossConfig) -> Tensor:
    """One pack forward and backward. What it adds to `SUMS`."""
    targets = list(one.targets)
    device = policy.device
    advantages_N = _joined([target.advantages_C for target in targets], device)
    engine_N = _joined([target.engine_logprobs_C for target in targets], device)
    weights_N = token_weights(
        [len(target.ids_C) for target in targets],
        num_sequences=work.part.num_sequences,
        num_tokens=work.part.num_tokens,
        normalise=loss.normalise,
    ).to(device)
    bins = [target.bins for target in targets if target.bins is not None]
    own_N1 = torch.from_numpy(one.targets_N)[:, None]
    chosen = torch.cat([own_N1, *([_joined([b.ids_Ck for b in bins], own_N1.device)] if bins else [])], dim=1)
    scored = policy.logprobs(adapter, one, chosen)
    logprobs_N = scored.chosen_NK[:, 0]
    if number == len(work.old):
        work.old.append(logprobs_N.detach())
    found = surrogate(
        logprobs_N,
        work.old[number],
        engine_N,
        advantages_N,
        eps_low=loss.eps_low,
        eps_high=loss.eps_high,
        importance_cap=loss.importance_cap if loss.importance_weight else None,
    )
    loss_N, kl_N = found.loss_N, torch.zeros_like(logprobs_N)
    if bins:
        kl_N = binned_reverse_kl(scored.chosen_NK[:, 1:], _joined([b.logprobs_Ck for b in bins], device))
        loss_N = loss_N + bins[0].weight * found.importance_N * kl_N
    (loss_N * weights_N).sum().backward()
    rows: dict[str, Tensor] = {
        "tokens": torch.ones_like(logprobs_N),
        "loss": loss_N.detach() * weights_N,
        "ratio": found.ratio_N,
        "clip": found.is_clipped_N,
        "mismatch": (work.old[number] - engine_N).abs(),
        "capped": found.importance_N >= loss.importance_cap,
        "entropy": scored.entropy_N,
        "advantage": advantages_N,
        "advantage_squared": advantages_N**2,
        "kl": kl_N.detach(),
    }
    return torch.stack([rows[name].double().sum() for name in SUMS])


def _joined(rows: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(rows)).to(device)


def _measured(sums: Tensor) -> dict[str, float]:
    """Means over the tokens that were computed."""
    values = dict(zip(SUMS, sums.tolist(), strict=True))
    tokens = max(1.0, values.pop("tokens"))
    loss = values.pop("loss")
    means = {name: value / tokens for name, value in values.items()}
    spread = max(0.0, means.pop("advantage_squared") - means["advantage"] ** 2) ** 0.5
    return {"loss": loss, "advantage_std": spread, **means}
