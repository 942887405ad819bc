from pathlib import Path

import pytest

from clients.cli import main

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
