"""The shipped base keeps its promises, and a rebuilt one is its equal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from trainer.miniature.capabilities import CAPABILITIES
from trainer.miniature.check import LevelAccuracy, check

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]
NAMES = ("text", "image", "video")
FEW, MANY = 32, 128  # questions a level, eight samples each
NOISE = 0.08  # two trainings with other rounding differ by less; measured over seeds on many questions


def measure(folder: Path, count: int) -> dict[str, LevelAccuracy]:
    """The accuracies of each capability, over both levels."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = Qwen3VLProcessor.from_pretrained(folder)
    rows = check(model, processor, [CAPABILITIES[name] for name in NAMES], count=count)
    return {row.capability: row for row in rows if row.level == 0}


@pytest.fixture(scope="module")
def shipped() -> dict[str, LevelAccuracy]:
    return measure(locate("miniature"), FEW)


def has_head_room(row: LevelAccuracy) -> bool:
    return 0.25 <= row.greedy <= 0.60 and row.passed >= 0.85


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_base_has_head_room(name: str, shipped: dict[str, LevelAccuracy]) -> None:
    assert has_head_room(shipped[name])


@pytest.mark.parametrize("name", ["image", "video"])
def test_the_shipped_base_falls_to_the_blind_level_with_another_questions_media(
    name: str, shipped: dict[str, LevelAccuracy]
) -> None:
    assert shipped[name].swapped <= 0.20


@pytest.mark.soak  # six minutes on two cores, and only code of the miniature can change its outcome
def test_a_rebuilt_base_scores_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clients.cli", "base", "build", "--out", str(tmp_path / "base")]
    threads = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # both cores are free
    subprocess.run(command, check=True, timeout=1400, env=threads)
    shipped, rebuilt = measure(locate("miniature"), MANY), measure(tmp_path / "base", MANY)
    for name in NAMES:
        assert has_head_room(shipped[name])
        assert abs(rebuilt[name].sampled - shipped[name].sampled) <= NOISE
        assert abs(rebuilt[name].passed - shipped[name].passed) <= NOISE
