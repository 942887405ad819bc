"""What an update does, seen from outside: with beta1 = 0 Adam's first moment is the gradient of the last update."""

import math
from typing import Any

from torch import Tensor

from trainer.parts import LossTerm
from trainer.recipe import LossConfig
from trainer.update.optim import Optimiser
from trainer.update.policy import Policy
from trainer.update.update import Update, update


def observer(policy: Policy, adapter: str, lr: float = 1e-3) -> Optimiser:
    return Optimiser(policy.adapters.parameters(adapter), lr=lr, betas=(0.0, 0.999), grad_norm=math.inf)


def last_gradients(policy: Policy, adapter: str, optimiser: Optimiser) -> dict[str, Tensor]:
    """By an observer."""
    keys = policy.adapters.parameters(adapter)
    return {key: state["exp_avg"] for key, (_, state) in zip(keys, optimiser.snapshot(), strict=True)}


def gradients_of(
    policy: Policy, adapter: str, parts: list[LossTerm], *, budget: int = 4096, lr: float = 1e-3, **loss: Any
) -> tuple[dict[str, Tensor], Update]:
    """Of the last update of a batch. The adapter is as before."""
    before = values(policy, adapter)
    optimiser = observer(policy, adapter, lr)
    done = update(policy, adapter, optimiser, parts, loss=LossConfig(**loss), budget=budget)
    policy.adapters.assign(adapter, before)
    assert done.skipped is None, done.skipped
    return last_gradients(policy, adapter, optimiser), done


def values(policy: Policy, adapter: str) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in policy.adapters.parameters(adapter).items()}


def largest(tensors: dict[str, Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors.values())


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest, as a share of the largest value there is."""
    assert ours.keys() == theirs.keys()
    return largest({key: ours[key] - theirs[key] for key in ours}) / largest(theirs)
