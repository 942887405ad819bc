"""A valid adapter of the miniature in two small files, without torch or PEFT (which test_validate compares with)."""

import json

import numpy as np
from safetensors.numpy import save_file

from adapters.base import locate
from adapters.manifest import CONFIG, WEIGHTS
from adapters.validate import TARGETS, base_shape

BASE = "sha256:" + "0" * 64
SHAPE = base_shape(locate("miniature"))


def write_adapter(folder, fill=0.0, *, rank=1):
    """`fill` makes contents differ."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": sorted(TARGETS)}
    (folder / CONFIG).write_text(json.dumps(config))
    save_file({key: np.full(shape, fill, "f4") for key, shape in SHAPE.shapes(rank).items()}, folder / WEIGHTS)
    return folder
