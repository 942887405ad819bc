"""LoRA on CPU for vLLM: one matrix product over all slots, with the columns of other slots masked out.

vLLM's own kernel gathers each token's weights, [tokens, out, rank], which costs a factor of five, and takes index -1,
the base, for the last slot. Here a base row's mask is all zeros.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class CpuLora(PunicaWrapperCPU):
    """Loaded by name inside the engine; the name is given in `engine.prepare_cpu`."""

    _masks: dict[tuple[int, int, int], Tensor]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        self._masks = {}
        super().update_metadata(*args, **kwargs)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.no_lora:
            return
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        start = 0
        for a_S1RI, b_S1OR, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            slots, _, rank, _ = a_S1RI.shape
            inner_TK = (x_TI @ a_S1RI.reshape(slots * rank, -1).T).float() * self._mask(len(x_TI), slots, rank)
            b_KO = b_S1OR[:, 0].permute(0, 2, 1).reshape(slots * rank, width)
            y_TO[:, start : start + width] += (inner_TK.to(b_KO.dtype) @ b_KO).to(y.dtype) * scale
            start += width

    def _mask(self, tokens: int, slots: int, rank: int) -> Tensor:
        """[tokens, slots * rank]: 1 where the column belongs to the token's slot. The same for all layers of a step."""
        key = (tokens, slots, rank)
        if key not in self._masks:
            slot_T = self.token_lora_indices[:tokens]
            own_TS = slot_T[:, None] == torch.arange(slots)[None]
            self._masks[key] = own_TS.float().repeat_interleave(rank, dim=1)
        return self._masks[key]
