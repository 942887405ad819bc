import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest

from clients.cli import main

RESULTS = Path("bench/results/compare")
PRIMARY = Path("bench/results/compare-primary")
REAL = Path("bench/results/compare-real")

COMPARE = "recipes/miniature/compare.toml"


@pytest.mark.parametrize(
    ("words", "recipe", "message"),
    [
        (["--seeds", "0"], COMPARE, "--seeds 0: take 1 or more"),
        (["--together", "0"], COMPARE, "--together 0: take 1 or more"),
        ([], "recipes/miniature/mopd.toml", "a comparison is made from a recipe of copd"),
        ([], "recipes/miniature/adaptive.toml", "fixed rhythm"),
        (["--set", "rollout.prompts=2"], COMPARE, "fewer than the 3 capabilities of mixed RLVR"),
        (
            ["--set", 'capabilities.text.data={type="dataset",name="x.jsonl"}'],
            COMPARE,
            "text has no validation questions",
        ),
        (["--json", "/nowhere/x.json"], COMPARE, "there is no folder /nowhere"),
    ],
)
def test_a_recipe_that_cannot_be_compared_is_refused_in_one_line(
    words: list[str], recipe: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["compare", recipe, "--out", str(tmp_path / "out"), *words]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_a_comparison_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", COMPARE, "--out", str(tmp_path / "out")]) == 2
    assert "take coevo compare" in capsys.readouterr().err


def test_tables_are_made_again_from_answers_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A seed of the committed comparison, through the door: its numbers are those of the answers."""
    kept, out = tmp_path / "kept", tmp_path / "out"
    (kept / "answers").mkdir(parents=True)
    shutil.copy(RESULTS / "comparison.json", kept)
    for name in ("seed-13.jsonl", "merges-13.json"):
        shutil.copy(RESULTS / "answers" / name, kept / "answers")
    assert main(["compare", COMPARE, "--from", str(kept), "--out", str(out)]) == 0
    assert "report.html has tables" in capsys.readouterr().out
    rewards = {
        (line["system"], line["row"], line["exam"]): line["rewards"]
        for line in map(json.loads, (kept / "answers" / "seed-13.jsonl").read_text().splitlines())
        if line["way"] == "greedy"
    }
    copd = fmean(fmean(rewards["copd2", "merged", exam]) for exam in ("text", "image"))
    table = (out / "tables.md").read_text()
    (row,) = re.findall(r"two branches, seed 13, greedy.*?(\| CoPD \|[^\n]*)", table, re.DOTALL)
    assert f"{100 * copd:.1f} ± " in row.split(" | ")[3]
    assert table.count("| one seed |") > 5
    assert "| holds |" not in table


def test_a_folder_without_answers_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", COMPARE, "--from", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "there is no answers/seed-0.jsonl" in capsys.readouterr().err


@pytest.mark.reference
@pytest.mark.parametrize(
    ("recipe", "results", "page"),
    [
        (COMPARE, RESULTS, "docs/results-tables.md"),
        ("recipes/miniature/compare-primary.toml", PRIMARY, "docs/results-primary.md"),
        ("recipes/real/compare.toml", REAL, "docs/results-real.md"),
    ],
)
def test_the_tables_in_the_docs_are_those_of_the_committed_answers(
    recipe: str, results: Path, page: str, tmp_path: Path
):
    assert main(["compare", recipe, "--from", str(results), "--out", str(tmp_path)]) == 0
    assert Path(page).read_text().endswith((tmp_path / "tables.md").read_text())
