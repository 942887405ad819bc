"""LoRA on projections of the language model, seven at most: several adapters on one frozen base copy.

Masters are float32 and are cast to the base's dtype in the forward pass, as the engine does, with the scale folded
into B (a power of two: nothing is rounded twice). On disk an adapter is PEFT's format.

Left out: dropout (log-probabilities must repeat), other targets (the engine serves no others rightly).

Axes: r rank, I inputs, O outputs, X all other axes of the activations.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adapters.errors import UserError
from adapters.manifest import CONFIG, WEIGHTS
from adapters.validate import PREFIX, TARGETS, Adapter


class LoraLinear(nn.Module):
    """A frozen projection with the adapters beside it; `active` is the one that is computed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down_rI = nn.ParameterDict()
        """PEFT's A, by adapter."""
        self.up_Or = nn.ParameterDict()
        """PEFT's B, by adapter."""
        self.active: tuple[nn.Parameter, nn.Parameter, float] | None = None
        """Down, up and scale. Not a name: a compiled layer is one graph for all adapters."""

    def forward(self, x_XI: Tensor) -> Tensor:
        if self.active is None:
            return self.base(x_XI)
        down_rI, up_Or, scale = self.active
        # y = W x + scale * B (A x), cast and folded as the engine does, so that both round alike
        dtype = self.base.weight.dtype
        rows = x_XI.flatten(0, -2)
        down_Nr = rows @ down_rI.to(dtype).T
        output = torch.addmm(self.base(rows), down_Nr, (up_Or * scale).to(dtype).T)
        return output.unflatten(0, x_XI.shape[:-1])


class Adapters:
    """The adapters of a language model, whose projections it wraps."""

    def __init__(self, language_model: nn.Module, path: str) -> None:
        """`path`: where the language model lies in the base, with its dot."""
        self._prefix = f"{PREFIX}{path}"
        self._layers: dict[str, LoraLinear] = {}
        for name, module in list(language_model.named_modules()):  # a list: wrapping changes what is walked
            parent, _, child = name.rpartition(".")
            if child in TARGETS:
                assert isinstance(module, nn.Linear)
                self._layers[name] = LoraLinear(module)
                setattr(language_model.get_submodule(parent), child, self._layers[name])
        self._shapes: dict[str, tuple[int, int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def add(self, name: str, *, rank: int, alpha: int, seed: int | str, modules: Collection[str] = TARGETS) -> None:
        """A new adapter of these projections, B = 0: the base itself. Equal seeds give equal A."""
        assert name not in self._shapes
        for layer_name, layer in self._layers.items():
            if layer_name.rpartition(".")[2] not in modules:
                continue
            weight = layer.base.weight
            # PEFT's Kaiming uniform, from a stream of chance for each layer: the layers' order does not matter.
            stream = hashlib.sha256(f"{seed} {layer_name}".encode()).digest()
            generator = torch.Generator().manual_seed(
                int.from_bytes(stream[:8], "big") >> 1
            )  # 63 bits: seeds are signed
            bound = weight.shape[1] ** -0.5
            values: Any = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator)
            layer.down_rI[name] = nn.Parameter(values.to(weight.device))
            layer.up_Or[name] = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        self._shapes[name] = (rank, alpha)

    def remove(self, name: str) -> None:
        self.select(None)  # else the layers would go on holding its parameters
        del self._shapes[name]
        for _, layer in self._layers_of(name):
            del layer.down_rI[name], layer.up_Or[name]

    def select(self, name: str | None) -> None:
        """Which adapter is computed; None is the base."""
        for layer in self._layers.values():  # all: another adapter may have projections that this one has not
            layer.active = None
        if name is None:
            return
        rank, alpha = self._shapes[name]
        for _, layer in self._layers_of(name):
            layer.active = (layer.down_rI[name], layer.up_Or[name], alpha / rank)

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The masters, by their keys on disk, in a fixed order."""
        return dict(self._parameters(name))

    def _parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        for layer_name, layer in self._layers_of(name):
            yield f"{self._prefix}{layer_name}.lora_A.weight", layer.down_rI[name]
            yield f"{self._prefix}{layer_name}.lora_B.weight", layer.up_Or[name]

    def _layers_of(self, name: str) -> list[tuple[str, LoraLinear]]:
        """The projections that an adapter has, sorted."""
        return [(layer_name, layer) for layer_name, layer in sorted(self._layers.items()) if name in layer.down_rI]

    def save(self, name: str, folder: Path) -> None:
        """PEFT's two files. Parameters in a fixed order and nothing of the moment: equal adapters are equal bytes."""
        rank, alpha = self._shapes[name]
        save_file({key: value.detach().cpu() for key, value in self._parameters(name)}, folder / WEIGHTS)
        config: Any = LoraConfig(r=rank, lora_alpha=alpha, inference_mode=True, task_type="CAUSAL_LM")
        modules = {layer_name.rpartition(".")[2] for layer_name, _ in self._layers_of(name)}
        settings = config.to_dict() | {"target_modules": sorted(modules)}  # a set has no order to repeat
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")

    def load(self, name: str, folder: Path) -> None:
        """The delta of the adapter in `folder` into the adapter `name`, whose own rank and scale stay.

        One from elsewhere may have fewer modules, a lower rank and another scale. Where it has nothing, A stays as it
        was drawn and B is 0: the same model, and one that can learn everywhere.
        """
        rank, alpha = self._shapes[name]
        settings = json.loads((folder / CONFIG).read_text())
        source = Adapter(int(settings["r"]), settings["lora_alpha"], settings.get("use_rslora") is True)
        if source.rank > rank:
            raise UserError(
                f"{name}: starts with an adapter of rank {source.rank}; set lora.rank to {source.rank} or more"
            )
        values = load_file(folder / WEIGHTS)
        if foreign := sorted({key.split(".")[-3] for key in values.keys() - self.parameters(name).keys()}):
            raise UserError(f"{name}: starts with an adapter of {', '.join(foreign)} too; add them to lora.modules")
        with torch.no_grad():
            for key, parameter in self._parameters(name):
                if "lora_A" in key and key in values:
                    parameter[: source.rank].copy_(values[key])
                elif "lora_B" in key:
                    parameter.zero_()
                    if key in values:  # s B A = s' (s / s' B) A; for our own files the quotient is 1, to the bit
                        parameter[:, : source.rank].copy_(values[key] * (source.scale / (alpha / rank)))

    def assign(self, name: str, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for key, parameter in self._parameters(name):
                parameter.copy_(values[key])
