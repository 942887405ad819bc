"""Tiny bases without vision: a Qwen3 and a Llama with random weights and the miniature's tokenizer.

Their templates take texts alone, as those of real ones do.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from adapters.base import locate

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,  # a random model of 0.02 says nearly the same everywhere, whatever it is asked
}
CONFIGS: dict[str, dict[str, Any]] = {
    # Heads that are no share of the hidden size, and one matrix for input and output.
    "qwen3": SIZES | {"head_dim": 64, "tie_word_embeddings": True},
    # Llama 3.2's positions.
    "llama": SIZES
    | {"head_dim": 32, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    | {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}
KINDS = tuple(CONFIGS)
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_text_base(folder: Path, kind: str) -> Path:
    disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(locate("miniature"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(KINDS.index(kind))
    model: Any
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**CONFIGS[kind], **ids))
    else:
        model = LlamaForCausalLM(LlamaConfig(**CONFIGS[kind], **ids))
    model.save_pretrained(folder)
    return folder
