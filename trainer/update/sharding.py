"""The frozen base shared out among processes, by PyTorch's FSDP2: each holds its part of every layer.

A layer is whole for as long as it is computed: its parts are gathered before, in the forward pass and once more in the
backward pass, and freed behind. Adapters are added later and belong to no group: every process has them whole, and
`Ranks.sum` stays the only message of gradients. Embeddings, norm, head and vision stay whole in every process.

So all processes compute equally many passes: who has fewer packs than another keeps step (`Policy.keep_step`).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def shard_layers(language: nn.Module, device: torch.device) -> None:
    """Leaves this process its part of each layer, on the device. The rest of the model stays where it is."""
    language.requires_grad_(False)  # before: a group whose parameters learn would gather their gradients as well
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers: Any = language.layers
    for layer in layers:
        fully_shard(layer, mesh=mesh)  # one at a time: a device never holds two whole ones
    # The layers' common root, with no parameter of its own. It knows their order, so that the next one is gathered
    # while one is computed.
    rest = {parameter for parameter in language.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(language, mesh=mesh, ignored_params=rest)


def is_sharded(language: nn.Module) -> bool:
    return isinstance(language, FSDPModule)
