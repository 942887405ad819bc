"""LoRA on CPU for vLLM: one matrix product over a step's slots, with the columns of other slots masked out.

vLLM's own kernel gathers each token's weights, [tokens, out, rank], which costs a factor of five, and takes index -1,
the base, for the last slot. Here all columns of a base row are masked out. Slots that no token of the step has are left
alone: to copy their weights costs as much as to use them. A step of one slot, which is most of them, needs neither.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


@dataclass(frozen=True, slots=True)
class _StepSlots:
    """The slots of a step's tokens."""

    slots: Tensor | slice
    foreign_TK: Tensor | None
    """[tokens, slots * rank]: whether the column belongs to another slot than the token's; None where none does."""


class CpuLora(PunicaWrapperCPU):
    """Loaded by name inside the engine; the name is given in `vllm.prepare_process`."""

    _steps: dict[tuple[int, int], _StepSlots]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        self._steps = {}  # vLLM calls this when a step begins: from here on tokens have other slots
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
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        start = 0
        for a_S1RI, b_S1OR, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            key = (len(x_TI), a_S1RI.shape[2])
            if key not in self._steps:  # the same for all layers of a step, so it is made once
                self._steps[key] = _step_slots(self.token_lora_indices[: len(x_TI)], key[1])
            step = self._steps[key]
            # y += scale * mask(x A^T) B^T, where A and B are those of all slots of the step side by side.
            inner_TK = x_TI @ a_S1RI[step.slots, 0].flatten(0, 1).T
            if step.foreign_TK is not None:
                # Overwritten, not multiplied by 0: where another slot's product overflows, Inf * 0 would be NaN here.
                inner_TK.masked_fill_(step.foreign_TK, 0.0)
            b_KO = b_S1OR[step.slots, 0].mT.flatten(0, 1)
            y_TO[:, start : start + width].addmm_(inner_TK, b_KO, alpha=scale)
            start += width


def _step_slots(slot_T: Tensor, rank: int) -> _StepSlots:
    present = slot_T.unique()
    if len(present) == 1 and present[0] >= 0:
        slot = int(present)
        return _StepSlots(slice(slot, slot + 1), None)  # a slice is a view: nothing is copied
    slots_P = present[present >= 0]  # -1 is the base: it has no weights, so every column is foreign to it
    return _StepSlots(slots_P, (slot_T[:, None] != slots_P).repeat_interleave(rank, dim=1))
