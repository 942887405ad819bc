"""SmolLM2-135M-Instruct, read from its package.

Its weights have four bits there. Here they are float32: the same numbers, and what is said of exactness is meant of
these.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from trainer.realbase.package import FILE, package_folder


def read_source() -> tuple[LlamaForCausalLM, Any]:
    """The model in float32, and its tokenizer."""
    disable_progress_bar()
    folder = package_folder()
    read: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    settings: dict[str, Any] = read.config.to_dict()
    settings.pop("quantization_config", None)  # of the file, whose weights are float32 by now
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict(), assign=True)  # instead of its own, which are let go
    model.tie_weights()
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
