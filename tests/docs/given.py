"""What a page says that its reader has: adapters trained elsewhere, a base that was downloaded."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from adapters.base import locate
from tests.adapters.peft_files import PARTIAL, save_by_peft


def adapters_of_a_base(folder: Path) -> None:
    """The miniature stands in for the 4B: no block names a number of its."""
    (folder / "Qwen").mkdir()
    (folder / "Qwen/Qwen3-VL-4B-Instruct").symlink_to(locate("miniature"))
    for seed, (name, rank) in enumerate({"math-lora": 4, "vision-lora": 8, "half-lora": 8}.items()):
        save_by_peft(folder / name, seed=seed, strength=0.1, r=rank, **PARTIAL["all-linear"])
    weights = folder / "half-lora/adapter_model.safetensors"
    save_file({key: weight.to(torch.bfloat16) for key, weight in load_file(weights).items()}, weights)


def adapter(folder: Path) -> None:
    save_by_peft(folder / "my-adapter", strength=0.1, **PARTIAL["all-linear"])


GIVEN: Mapping[str, Callable[[Path], object]] = {"docs/merge.md": adapters_of_a_base, "docs/service.md": adapter}
