from pathlib import Path

import pytest

from clients.cli import main
from trainer.commands.compare import blind_levels, groups
from trainer.evaluation.exams import exams
from trainer.recipe.file import load

COMPARE = "recipes/miniature/compare.toml"


@pytest.mark.parametrize(
    ("words", "recipe", "said"),
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
def test_what_cannot_be_compared_is_one_line(words, recipe, said, tmp_path, capsys):
    assert main(["compare", recipe, "--out", str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert not (tmp_path / "out").exists()


def test_seeds_are_trained_as_many_together_as_asked():
    assert groups([4, 0, 2, 3], 1) == [[0], [2], [3], [4]]
    assert groups([4, 0, 2], 2) == [[0, 2], [4]]
    assert groups([], 2) == []


def test_the_blind_level_is_the_mean_of_what_the_seeds_were_asked():
    recipe = load(Path(COMPARE), ["evaluation.questions=24"])
    (first, *_), (second, *_) = (exams(recipe, draw=draw) for draw in (0, 1))
    assert first.blind != second.blind
    found = blind_levels(recipe, [0, 1])
    assert list(found) == ["text", "image", "video"]
    assert found["text"] == pytest.approx((first.blind + second.blind) / 2)


def test_a_recipe_of_a_comparison_is_no_run(tmp_path, capsys):
    assert main(["run", COMPARE, "--out", str(tmp_path / "out")]) == 2
    assert "take coevo compare" in capsys.readouterr().err
