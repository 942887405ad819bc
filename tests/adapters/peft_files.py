"""Adapters of the miniature as PEFT itself makes and saves them."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from adapters.base import locate

WITHOUT_VISION = {"target_modules": "all-linear", "exclude_modules": ".*visual.*"}
PARTIAL: dict[str, dict[str, Any]] = {
    "all-linear": WITHOUT_VISION,
    "query-value": {"target_modules": ["v_proj", "q_proj"]},
    "pattern": {"target_modules": r".*language_model.*\.(q|down)_proj"},
    "two-layers": {"target_modules": ["o_proj"], "layers_to_transform": [0, 2]},
}
"""What people train besides the seven by their names."""


def save_by_peft(folder: Path, *, seed: int = 0, strength: float = 1.0, **settings: Any) -> Path:
    """An adapter whose B is not zero; `strength` multiplies it."""
    disable_progress_bar()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(locate("miniature"), dtype=torch.float32)
    peft = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 16, "init_lora_weights": False} | settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(strength)
    peft.save_pretrained(str(folder))
    return folder
