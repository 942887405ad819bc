"""What an update does, seen from outside: with beta1 = 0 Adam's first moment is the gradient of the last update."""

import math
from collections.abc import Mapping
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
    """The gradients that an observer saw last."""
    keys = policy.adapters.parameters(adapter)
    return {key: state["exp_avg"] for key, (_, state) in zip(keys, optimiser.snapshot(), strict=True)}


def gradients_of(
    policy: Policy, adapter: str, terms: list[LossTerm], *, budget: int = 4096, lr: float = 1e-3, **loss: Any
) -> tuple[dict[str, Tensor], Update]:
    """The gradients of the last update of a batch. The adapter is as before."""
    before = values(policy, adapter)
    optimiser = observer(policy, adapter, lr)
    done = update(policy, adapter, optimiser, terms, loss=LossConfig(**loss), budget=budget)
    policy.adapters.assign(adapter, before)
    assert done.skipped is None, done.skipped
    return last_gradients(policy, adapter, optimiser), done


def values(policy: Policy, adapter: str) -> dict[str, Tensor]:
    return {key: parameter.detach().clone() for key, parameter in policy.adapters.parameters(adapter).items()}


def largest(tensors: Mapping[str, Tensor]) -> float:
    return max(tensor.abs().max().item() for tensor in tensors.values())


def difference(gradients: Mapping[str, Tensor], expected: Mapping[str, Any]) -> float:
    """The largest, as a share of the largest value there is."""
    assert gradients.keys() == expected.keys()
    return largest({key: gradients[key] - expected[key] for key in gradients}) / largest(expected)
