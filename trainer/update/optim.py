"""AdamW for one adapter, on its float32 masters, with its moments on disk beside the adapter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.manifest import OPTIMISER

_MOMENTS = ("exp_avg", "exp_avg_sq")

Snapshot = list[tuple[Tensor, dict[str, Tensor]]]


class Optimiser:
    """`parameters` by their keys on disk, in a fixed order."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        grad_norm: float = 1.0,
        warmup_steps: int = 0,
    ) -> None:
        self._parameters = dict(parameters)
        self._lr, self._grad_norm, self._warmup_steps = lr, grad_norm, warmup_steps
        self._adam: Any = torch.optim.AdamW(
            self._parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )

    @property
    def num_updates(self) -> int:
        """The updates since the adapter's start."""
        states = [self._adam.state[parameter] for parameter in self._parameters.values()]
        return int(states[0]["step"]) if states[0] else 0

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One update with gradients that are scaled down to the norm; they are used up."""
        for key, parameter in self._parameters.items():
            parameter.grad = gradients[key]
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._grad_norm)
        # A linear rise, then constant. Counted in updates and not in steps: a skipped step has made none.
        rise = min(1.0, (self.num_updates + 1) / self._warmup_steps) if self._warmup_steps else 1.0
        self._adam.param_groups[0]["lr"] = self._lr * rise
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def snapshot(self) -> Snapshot:
        """The masters and their moments as they are now."""
        return [
            (parameter.detach().clone(), {name: value.clone() for name, value in self._adam.state[parameter].items()})
            for parameter in self._parameters.values()
        ]

    def restore(self, snapshot: Snapshot | None) -> None:
        """None: nothing has changed."""
        with torch.no_grad():
            for parameter, (values, state) in zip(
                self._parameters.values(), snapshot or (), strict=snapshot is not None
            ):
                parameter.copy_(values)
                self._adam.state[parameter] = {name: value.clone() for name, value in state.items()}

    def save(self, folder: Path) -> None:
        tensors = {"step": torch.tensor([float(self.num_updates)])}
        for key, parameter in self._parameters.items():
            state = self._adam.state[parameter]  # empty before the first update
            tensors |= {f"{moment}.{key}": state[moment].cpu() for moment in _MOMENTS if state}
        save_file(tensors, folder / OPTIMISER)

    def load(self, folder: Path) -> None:
        """What `save` wrote: the next update is the one that would have followed."""
        tensors = load_file(folder / OPTIMISER)
        for key, parameter in self._parameters.items():
            if f"{_MOMENTS[0]}.{key}" not in tensors:
                continue  # saved before its first update
            moments = {moment: tensors[f"{moment}.{key}"].to(parameter.device) for moment in _MOMENTS}
            step = tensors["step"][0].clone().to(parameter.device)
            self._adam.state[parameter] = {"step": step, **moments}
