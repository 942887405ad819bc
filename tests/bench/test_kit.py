"""The kit's parts that need no service: its base, its recipe, its page, what it does with what fails."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from adapters.errors import UserError
from bench.gpu import kit
from bench.gpu.kit import CHANGES_ON_A_CARD, Kit, make_base, row, write_recipe
from bench.gpu.page import page
from clients.cli import main
from trainer.doctor.memory import shape_of
from trainer.plan.make import make_plan
from trainer.recipe.file import load
from trainer.update.policy import load_policy


def arguments(out: Path, seconds: int = 600) -> argparse.Namespace:
    return argparse.Namespace(out=out, json=None, seconds=seconds, tiny=True)


def test_the_base_is_one_that_the_trainer_and_a_processor_read(tmp_path: Path) -> None:
    parameters = make_base(tmp_path / "base", is_tiny=True)
    shape = shape_of(json.loads((tmp_path / "base/config.json").read_text()))
    assert shape.parameters == parameters
    policy = load_policy(tmp_path / "base", dtype="float32")
    policy.adapters.add("kit", rank=8, alpha=8, seed=0)
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "base").tokenizer
    assert len(tokenizer) < shape.vocabulary


def test_the_recipe_has_an_rlvr_and_an_opd_step_of_three_branches(tmp_path: Path) -> None:
    make_base(tmp_path / "base", is_tiny=True)
    write_recipe(Kit(tmp_path, True, 0))
    steps = list(make_plan(load(tmp_path / "recipe.json")).steps)
    assert [len(step.teachers) for step in steps] == [0, 0, 0, 2, 1, 1]
    # And what it says on a card can be said.
    assert load(Path("miniature"), list(CHANGES_ON_A_CARD)).rollout.max_completion_tokens == 512


def test_a_part_that_fails_leaves_the_others_and_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Kit) -> Iterator[kit.Row]:
        yield row("before it broke", "s", 1.5)
        raise RuntimeError("no kernel image\nis available")

    def well(_: Kit) -> Iterator[kit.Row]:
        yield row("after it", "tokens/s", 2000, "a peer", 1000)

    monkeypatch.setattr(kit, "PARTS", {"engine": (broken, 1), "scoring": (well, 1)})
    assert kit.run(arguments(tmp_path / "out")) == 1
    rows = json.loads((tmp_path / "out/kit.json").read_text())
    assert [row["what"] for row in rows] == ["gpu: before it broke", "gpu: after it"]
    text = (tmp_path / "out/kit.md").read_text()
    assert "| after it | 2000 tokens/s | a peer | 1000 tokens/s |\n" in text
    assert "* engine: failed: RuntimeError: no kernel image\n" in text
    assert "gpu: after it: 2000 tokens/s" in capsys.readouterr().out


def test_a_part_that_would_be_late_is_skipped_on_a_card() -> None:
    text = page([], ["run: skipped, it may take 150 s and 20 s are left"], is_tiny=True)
    assert text.endswith("\n* run: skipped, it may take 150 s and 20 s are left\n")


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds what no kit wrote; name a new folder"):
        kit.run(arguments(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_card_the_kit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", f"--out={tmp_path / 'gpu'}"]) == 0
    assert capsys.readouterr().out.startswith("gpu: no CUDA device here, nothing is measured; ")
    assert not (tmp_path / "gpu").exists()
