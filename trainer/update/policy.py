"""The policy: a frozen base with several LoRA adapters, and the log-probabilities of a pack under one of them.

One copy of the base, whatever the number of adapters. The model's own forward pass runs over a whole pack at once
(`packing`), with its attention (`attention`) and with media seen once a prompt (`vision`). The base is a Qwen3-VL, or a
model that reads text alone (`adapters.architectures`).

Left out: sampling (the service does that) and training (`update`, `optim`).

Axes: T tokens of a pack, N predicted tokens, K chosen ids of each, D hidden size, M media tokens, L deep layers, A axes
of a position.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.architectures import architecture_of, read_architecture
from adapters.precision import Dtype
from service.media import Pixels
from trainer.update import attention
from trainer.update.logprobs import Logprobs, chosen_logprobs
from trainer.update.lora import Adapters
from trainer.update.packing import Pack, text_pack
from trainer.update.sharding import is_sharded, shard_layers
from trainer.update.vision import Blind, Seen, Vision


class Policy:
    def __init__(
        self, model: PreTrainedModel, processor: Qwen3VLProcessor | None = None, pixels: Pixels | None = None
    ) -> None:
        """`processor` is that of a base with vision."""
        model.requires_grad_(False).eval()
        self._model: Any = model
        path = architecture_of(model.config.to_dict()).language
        self._language: Any = model.get_submodule(path.removesuffix("."))
        self.adapters = Adapters(self._language, path)
        self.vision: Vision | Blind = Blind(model.device)
        if processor is not None:
            assert isinstance(model, Qwen3VLForConditionalGeneration)
            self.vision = Vision(model, processor, pixels)
        self.packs = 0
        """How many were computed."""

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self._language)

    def recompute_layers(self) -> None:
        """Gradient checkpointing: only the inputs of the layers are kept for the backward pass."""
        self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model.disable_input_require_grads()  # only the reentrant way needs it; media are written into the inputs
        self._language.train()  # asked for by transformers; there is no dropout to switch on

    def compile_layers(self, backend: str = "inductor") -> None:
        """For CUDA, where a step is a third faster; the first takes a minute or two more. A graph serves all layers,
        adapters and lengths."""
        for layer in self._language.layers:
            layer.compile(dynamic=True, backend=backend)

    def logprobs(self, adapter: str | None, pack: Pack, chosen_NK: Tensor | None = None) -> Logprobs:
        """Log-probabilities of the pack's own tokens, or of `chosen_NK`, under an adapter or the base (None)."""
        self.adapters.select(adapter)
        self.packs += 1
        hidden_TD = self._hidden(pack)
        ids_NK = torch.from_numpy(pack.targets_N)[:, None] if chosen_NK is None else chosen_NK
        sources_N = torch.from_numpy(pack.sources_N).to(self.device)
        return chosen_logprobs(hidden_TD[sources_N], self._model.lm_head.weight, ids_NK.to(self.device))

    def keep_step(self, adapter: str) -> None:
        """A pass that learns nothing. Where layers are sharded they are gathered by all processes at once, so those
        with fewer packs make as many passes as the others."""
        if self.is_sharded:
            (0 * self.logprobs(adapter, text_pack([0], [0, 0])).chosen_NK).sum().backward()

    @torch.no_grad()
    def measure(self, adapter: str | None, pack: Pack) -> list[float]:
        """The log-probabilities alone."""
        return self.logprobs(adapter, pack).chosen_NK[:, 0].tolist()

    def _hidden(self, pack: Pack) -> Tensor:
        seen = [self.vision(rollout) for rollout in pack.rollouts]
        embedded_TD = self._language.embed_tokens(torch.from_numpy(pack.ids_T).to(self.device))
        media: dict[str, Any] = {}
        if any(prompt.features_MD is not None for prompt in seen):
            # Completions hold no media: only the prompts' marks count, and the row goes on without.
            is_media_T = torch.cat(
                [
                    torch.nn.functional.pad(prompt.is_media_P, (0, sum(span.completions)))
                    for prompt, span in zip(seen, pack.spans, strict=True)
                ]
            )
            features_MD = torch.cat([prompt.features_MD for prompt in seen if prompt.features_MD is not None])
            deep_LMD = torch.cat([prompt.deep_LMD for prompt in seen if prompt.deep_LMD is not None], dim=1)
            embedded_TD[is_media_T] = features_MD.to(embedded_TD.dtype)
            media = {"visual_pos_masks": is_media_T[None], "deepstack_visual_embeds": list(deep_LMD)}
        positions_AT = _positions(seen, pack).to(self.device)
        output = self._language(
            inputs_embeds=embedded_TD[None],
            # [3, 1, T] where a position has three axes; [1, T] where there is one, which stands for the row as well.
            position_ids=positions_AT[:, None] if len(positions_AT) > 1 else positions_AT,
            use_cache=False,
            layout=attention.layout(pack.spans, self.device),
            **media,
        )
        return output.last_hidden_state[0]


def load_policy(
    base: Path,
    *,
    dtype: Dtype,
    device: str | torch.device = "cpu",
    pixels: Pixels | None = None,
    shard: bool = False,
) -> Policy:
    """The base of a folder, frozen; with `shard` each of several processes has its part of the layers."""
    settings: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention.NAME}
    if not read_architecture(base).has_vision:
        text_model: Any = AutoModelForCausalLM.from_pretrained(base, **settings)
        return Policy(_placed(text_model, device, shard))
    settings["attn_implementation"] = {"text_config": attention.NAME, "vision_config": "sdpa"}
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(base, **settings)
    return Policy(_placed(model, device, shard), Qwen3VLProcessor.from_pretrained(base), pixels)


def _placed(model: Any, device: str | torch.device, shard: bool) -> Any:
    """The model on its device. A layer at a time where it is sharded: the device need not have room for all of it."""
    if shard:
        path = architecture_of(model.config.to_dict()).language
        shard_layers(model.get_submodule(path.removesuffix(".")), torch.device(device))
    return model.to(device)


def _positions(seen: list[Seen], pack: Pack) -> Tensor:
    """[A, T]: after the prompt every completion starts at the same position."""
    positions: list[Tensor] = []
    for prompt, span in zip(seen, pack.spans, strict=True):
        longest = max(span.completions)
        # From the largest position on, not from the prompt's length: media take fewer positions than tokens.
        rising_C = torch.arange(longest, device=prompt.positions_AP.device) + prompt.positions_AP.max() + 1
        positions.append(prompt.positions_AP)
        positions += [rising_C[:length].expand(len(prompt.positions_AP), -1) for length in span.completions]
    return torch.cat(positions, dim=1)
