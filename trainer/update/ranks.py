"""Several processes that make one update together: each takes some of the packs, the gradients are summed.

`SINGLE_PROCESS` is the case of one process; `joined()` is what `torchrun` started. Rank 0 is the only one that talks to
the service and the queue. Denominators are those of the whole batch, so a sum of gradients is all there is to do.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `count` of them."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, tensors: Mapping[str, Tensor]) -> None:
        """Sums each tensor over all processes, in place and in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors.values(), flat.split([t.numel() for t in tensors.values()]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, is_here: bool, device: torch.device) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return is_here
        flag = torch.tensor([float(is_here)], device=device)
        dist.all_reduce(flag)
        return bool(flag.item())

    def from_first(self, value: Any) -> Any:
        """What rank 0 has: an order, or a batch."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


SINGLE_PROCESS = Ranks()
_PATIENCE = timedelta(days=1)
"""How long a process waits for rank 0's order. It waits through rollouts, which take as long as they take; when rank 0
dies, torchrun ends the others. When another hangs, rank 0's update makes no progress, and its watchdog ends rank 0."""


@contextmanager
def joined() -> Generator[Ranks]:
    """The processes that torchrun started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield SINGLE_PROCESS
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Orders travel as objects over gloo: the others wait for them as long as rollouts take, which NCCL would not.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
