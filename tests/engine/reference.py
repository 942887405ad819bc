"""Log-probabilities by transformers and PEFT: what the engine is held to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from service.engine.vllm import EngineMedia


class Reference:
    """The base with every adapter beside it, in float32."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folders: dict[str, Path]):
        first, *rest = folders
        self._peft: Any = PeftModel.from_pretrained(model, folders[first], adapter_name=first)
        for name in rest:
            self._peft.load_adapter(folders[name], adapter_name=name)
        self._peft.eval()
        self._processor = processor

    @torch.inference_mode()
    def logprobs(self, adapter: str, ids: Sequence[int], completion: int, media: EngineMedia) -> torch.Tensor:
        """Log-probabilities of the last `completion` of `ids` (expanded) [C, V]."""
        config = self._peft.config
        ids_1T = torch.tensor([list(ids)])
        kinds_1T = (ids_1T == config.image_token_id).int() + 2 * (ids_1T == config.video_token_id).int()
        inputs = {"input_ids": ids_1T, "mm_token_type_ids": kinds_1T} | self._pixels(media)
        if adapter == "base":
            with self._peft.disable_adapter():
                logits_TV = self._peft(**inputs).logits[0]
        else:
            self._peft.set_adapter(adapter)
            logits_TV = self._peft(**inputs).logits[0]
        return logits_TV[-completion - 1 : -1].float().log_softmax(-1)

    def _pixels(self, media: EngineMedia) -> dict[str, Any]:
        pixels: dict[str, Any] = {}
        if media.images:
            pixels |= self._processor.image_processor(
                [image for _, image in media.images], do_resize=False, return_tensors="pt"
            )
        if media.videos:
            pixels |= self._processor.video_processor(
                [video.frames_THWC for _, video in media.videos],
                video_metadata=[video.metadata() for _, video in media.videos],
                do_resize=False,
                do_sample_frames=False,
                return_tensors="pt",
            )
        return {name: value for name, value in pixels.items() if name.startswith(("pixel", "image", "video_grid"))}
