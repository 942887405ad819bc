"""The base of a recipe is there and can read what is asked, or one line says what makes such a one."""

import json
from pathlib import Path

import pytest

from clients.cli import main
from tests.text_bases import KINDS, write_text_base
from trainer.data.base import base_of
from trainer.miniature import BASE as MINIATURE
from trainer.recipe.file import load

FIVE = "recipes/miniature/copd5.toml"
THREE_OF_THEM = "recipes/miniature/copd3-of-5.toml"
BUILD = "coevo base build --capabilities text image video shapes order --out"


@pytest.mark.parametrize("recipe", [FIVE, THREE_OF_THEM])
@pytest.mark.parametrize("command", ["plan", "run", "compare"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("miniature", f"base.name: miniature has no words for shapes, order; `{BUILD} DIR` trains one that has"),
        (
            "out/nowhere",
            "out/nowhere: neither a folder nor downloaded yet; `hf download out/nowhere` fetches it, or "
            f"`{BUILD} out/nowhere` trains it",
        ),
    ],
)
def test_before_anything_is_written_one_line_says_how_to_build_it(
    recipe: str, command: str, name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [] if command == "plan" else ["--out", str(out)]
    assert main([command, recipe, "--set", f"base.name={name}", *words]) == 2
    printed = capsys.readouterr()
    looks = command != "plan"  # run and compare look at everything, and say where each problem is
    key = "base.name: " if looks else ""
    assert printed.err == f"coevo {command}: {key}{said.removeprefix(key)}\n"
    assert printed.out == ("checking the recipe, its data and this machine\n" if looks else "")
    assert not out.exists()


def test_the_doctor_says_it_where_it_says_whether_the_recipe_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", FIVE, "--set", "base.name=miniature"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "recipe fits" in line]
    assert line.startswith("WARN")
    assert f"`{BUILD} DIR` trains one that has" in line


def test_a_folder_that_is_no_base_is_not_built_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json in this folder; name the folder of a Hugging Face checkpo"):
        base_of(load(Path(FIVE), [f"base.name={tmp_path}"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["capabilities.seen.data={type='miniature',name='video'}"], "capabilities.seen.data has"),
        (
            [
                "capabilities.seen.data={type='dataset',name='rows.jsonl',columns={images='image'}}",
                "evaluation.sets.films={capability='seen',data={type='dataset',name='rows.jsonl',"
                "columns={videos='clip'}},reward={kind='exact'}}",
            ],
            "capabilities.seen.data, evaluation.sets.films.data have",
        ),
    ],
    ids=["miniature", "data sets"],
)
def test_a_base_without_vision_is_shown_nothing(
    kind: str, changes: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_text_base(tmp_path / "base", kind)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"name = 'seeing'\nbase.name = '{base}'\n"
        "capabilities.text = {data = {type = 'miniature', name = 'text'}, reward = {kind = 'exact'}}\n"
        "capabilities.seen = {data = {type = 'miniature', name = 'text'}, reward = {kind = 'exact'}}\n"
    )
    assert base_of(load(recipe)) == base.resolve()
    words = [word for change in changes for word in ("--set", change)]
    assert main(["plan", str(recipe), *words]) == 2
    assert capsys.readouterr().err == (
        f"coevo plan: base.name: {base} ({kind}) reads text alone, and {said} images or videos; take a base with "
        "vision, or leave them out\n"
    )


def test_what_is_asked_of_benchmarks_and_held_out_questions_counts_too() -> None:
    changes = [
        'capabilities.text.held_out={type="miniature",name="order"}',
        'evaluation.sets.outlines={capability="text",data={type="miniature",name="shapes"},reward={kind="exact"}}',
    ]
    miniature = Path("recipes/miniature.toml")
    assert base_of(load(miniature)) == MINIATURE
    with pytest.raises(ValueError, match="miniature has no words for order, shapes"):
        base_of(load(miniature, changes))


def test_adapters_on_scaled_projections_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an embedded model says of itself: there they would be millions of times as strong."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_vl", "coevo_adapter_modules": ["v_proj", "o_proj"]})
    )
    words = ["plan", "real/copd3", "--set", f"base.name={tmp_path}", "--set", 'lora.modules=["v_proj", "q_proj"]']
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f'coevo plan: lora.modules: adapters of {tmp_path} must leave the others alone; set ["v_proj", "o_proj"]\n'
    )
