"""One adapter in many strengths, each told apart by its scores: what is uploaded, and what PEFT says of it.

Revision r is the adapter with its B matrices multiplied by `factor(r)`, and the factors of neighbours are far apart.
"""

import threading
from pathlib import Path
from typing import Any

import httpx
import torch
from peft import PeftModel
from safetensors.torch import load_file, save
from transformers import Qwen3VLForConditionalGeneration

from adapters.base import locate
from tests.engine.traffic import Scored

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def factor(revision: int) -> float:
    return 5.0 + 25.0 * (revision * 0.6180339887 % 1.0)


class ScaledAdapter:
    def __init__(self, folder: Path) -> None:
        model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32)
        self._weights = load_file(folder / WEIGHTS)
        self._config = (folder / CONFIG).read_bytes()
        self._peft: Any = PeftModel.from_pretrained(model, folder, adapter_name="scaled").eval()
        self._lock = threading.Lock()
        self._B = {n: p.detach().clone() for n, p in self._peft.named_parameters() if ".lora_B.scaled" in n}

    def files(self, revision: int) -> dict[str, tuple[str, bytes]]:
        """As a multipart upload takes them."""
        scaled = {
            name: value * factor(revision) if "lora_B" in name else value for name, value in self._weights.items()
        }
        return {WEIGHTS: (WEIGHTS, save(scaled, {"format": "pt"})), CONFIG: (CONFIG, self._config)}

    @torch.inference_mode()
    def logprobs(self, scored: Scored) -> torch.Tensor:
        """What the revision that is named should have answered [C]; revision 0 is the base."""
        revision, completion = scored.revision, scored.completion
        ids_1T = torch.tensor([[*scored.prompt, *completion]])
        with self._lock:
            for name, parameter in self._peft.named_parameters():
                if name in self._B:
                    parameter.copy_(self._B[name] * (factor(revision) if revision else 0.0))
            logits_TV = self._peft(input_ids=ids_1T).logits[0, -len(completion) - 1 : -1].float()
        return logits_TV.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]


def put(client: httpx.Client, adapter: ScaledAdapter, branch: str, revision: int, **fields: str) -> httpx.Response:
    return client.put(
        f"/adapters/{branch}/{revision}", data={"parent": str(revision - 1), **fields}, files=adapter.files(revision)
    )
