"""Adapters of bases without vision, and of a part of the projections: checked, folded and stacked as PEFT does it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from adapters.manifest import CONFIG, WEIGHTS
from adapters.validate import base_shape, check_adapter
from clients.cli import main
from tests.text_bases import KINDS, write_text_base

MODULES = {"five": ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), "two": ("v_proj", "down_proj")}


@pytest.fixture(params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_text_base(tmp_path / request.param, request.param)


def load(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def save_adapters(base: Path, root: Path) -> dict[str, Path]:
    for seed, (name, modules) in enumerate(MODULES.items()):
        torch.manual_seed(seed)
        config = LoraConfig(r=4 + seed, lora_alpha=16, target_modules=list(modules), init_lora_weights=False)
        get_peft_model(load(base), config).save_pretrained(str(root / name))
    return {name: root / name for name in MODULES}


def weights(model: Any) -> torch.Tensor:
    state = model.state_dict()
    return torch.cat([state[key].flatten() for key in sorted(state) if "proj" in key])


def test_a_merge_is_the_mean_of_what_peft_merges(base: Path, tmp_path: Path) -> None:
    folders = save_adapters(base, tmp_path)
    for name, folder in folders.items():
        assert check_adapter(folder, base_shape(base), 8).rank == 4 + list(MODULES).index(name)
    named, words = [f"{name}={folder}" for name, folder in folders.items()], ["--base", str(base)]
    assert main(["merge", *named, *words, "--out", str(tmp_path / "folded")]) == 0
    by_peft = [weights(PeftModel.from_pretrained(load(base), path).merge_and_unload()) for path in folders.values()]
    mean = (by_peft[0] + by_peft[1]) / 2
    assert float((mean - weights(load(base))).abs().max()) > 0.1
    torch.testing.assert_close(weights(load(tmp_path / "folded")), mean, atol=1e-6, rtol=1e-6)

    # As an adapter it has what some branch has, and no keys of a projection that none of them trains.
    assert main(["merge", *named, *words, "--adapter", str(tmp_path / "stacked")]) == 0
    assert check_adapter(tmp_path / "stacked", base_shape(base), 16).rank == 4 + 5
    assert json.loads((tmp_path / "stacked" / CONFIG).read_text())["target_modules"] == sorted(MODULES["five"])
    with safe_open(tmp_path / "stacked" / WEIGHTS, framework="numpy") as file:
        assert {key.split(".")[-3] for key in file.keys()} == set(MODULES["five"])  # noqa: SIM118, no mapping
    stacked = weights(PeftModel.from_pretrained(load(base), tmp_path / "stacked").merge_and_unload())
    torch.testing.assert_close(stacked, mean, atol=1e-5, rtol=1e-5)
