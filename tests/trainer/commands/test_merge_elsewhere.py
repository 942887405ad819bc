"""The commands of docs/merge.md, as printed, on adapters that PEFT made and no run of ours."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from adapters.base import locate
from tests.adapters.peft_files import WITHOUT_VISION, save_by_peft

PAGE = Path(__file__).parents[3] / "docs/merge.md"
BASE = "Qwen/Qwen3-VL-4B-Instruct"
FILE = "adapter_model.safetensors"
Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if language == "sh"]
(PRINTED,) = (text for language, text in BLOCKS if language == "text")

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters by the page's names, and the miniature by the base's: a folder is looked for before the hub."""
    folder = tmp_path_factory.mktemp("elsewhere")
    save_by_peft(folder / "math-lora", seed=1, strength=0.1, **WITHOUT_VISION)
    save_by_peft(folder / "vision-lora", seed=2, strength=0.1, r=4, target_modules=["q_proj", "v_proj"])
    half = save_by_peft(folder / "half-lora", seed=3, target_modules=["q_proj"]) / FILE
    save_file({key: weight.bfloat16() for key, weight in load_file(half).items()}, half)
    (folder / BASE).parent.mkdir()
    (folder / BASE).symlink_to(locate("miniature"))
    return folder


def typed(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euc", block], cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False
    )


def delta(adapter: Path) -> torch.Tensor:
    """B A of a projection, unscaled."""
    weights = load_file(adapter / FILE)
    up, down = (weights[f"base_model.model.{Q_PROJ}.lora_{half}.weight"] for half in "BA")
    return up @ down


def test_commands_of_the_page_run_as_printed(folder: Path) -> None:
    outputs = [typed(block, folder) for block in COMMANDS]
    assert [done.stderr for done in outputs] == [""] * len(COMMANDS)
    assert [done.returncode for done in outputs] == [0] * len(COMMANDS)
    # Its numbers are of these adapters; their last digits depend on the machine's arithmetic.
    names = [line.partition(":")[0] for line in PRINTED.splitlines()]
    assert [line.partition(":")[0] for line in outputs[0].stdout.splitlines()] == names
    merged = AutoModelForImageTextToText.from_pretrained(folder / "merged", dtype=torch.float32)
    base = AutoModelForImageTextToText.from_pretrained(folder / BASE, dtype=torch.float32)
    change = merged.get_parameter(f"{Q_PROJ}.weight") - base.get_parameter(f"{Q_PROJ}.weight")
    # alpha / rank is 16 / 8, and 16 / 4.
    mean = (2 * delta(folder / "math-lora") + 4 * delta(folder / "vision-lora")) / 2
    torch.testing.assert_close(change.detach(), mean, atol=2e-3, rtol=0)
    assert (folder / "merged-adapter" / FILE).is_file()


def test_an_adapter_of_16_bits_is_merged_and_said(folder: Path) -> None:
    done = typed("coevo merge half-lora math-lora --base Qwen/Qwen3-VL-4B-Instruct --adapter half-merged", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "half-lora: its weights are BF16; merged in float32\nadapter: half-merged\n"
