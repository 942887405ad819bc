"""Data and rewards as a recipe states them: keys that came later, and names of runs that stay."""

from pathlib import Path

import pytest

from adapters.errors import UserError
from trainer.recipe import Recipe
from trainer.recipe.file import digest, load, resolved, run_id, write_resolved

RECIPES = Path(__file__).parents[3] / "recipes"
RECIPE = """
name = "own"
base.name = "miniature"
method.kind = "rlvr"
[capabilities.maths]
data = { type = "dataset", name = "rows.jsonl" }
reward = { kind = "numeric" }
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("name", "run"), [("miniature", "miniature-42f70f58"), ("paper-copd3", "paper-copd3-bf2b7eeb")]
)
def test_runs_of_before_keep_their_names(name, run):
    assert run_id(load(RECIPES / f"{name}.toml")) == run


def test_keys_that_came_later_are_left_out_while_unset(recipe_file):
    plain = load(recipe_file)
    assert not any(key in resolved(plain) for key in ("options", "answer_pattern", "answer_as"))
    changed = load(recipe_file, ["capabilities.maths.data.answer_pattern=#### (.+)"])
    assert digest(changed) != digest(plain)
    assert '"answer_pattern": "#### (.+)"' in resolved(changed)


def test_set_keys_survive_the_resolved_recipe(recipe_file, tmp_path):
    recipe = load(recipe_file, ['capabilities.maths.data.columns.options=["A", "B"]'])
    path = tmp_path / "recipe.json"
    path.write_text(resolved(recipe))
    assert load(path) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("capabilities.maths.data.answer_pattern=####", "'####' has 0 groups; put (...) around the answer"),
        ("capabilities.maths.data.answer_pattern=(a)(b)", "has 2 groups"),
        ("capabilities.maths.data.answer_pattern=(", "is no regular expression"),
        ("capabilities.maths.data.answer_as=index", "answer_as is read with columns.options only"),
        ("capabilities.maths.data.answer_as=roman", "must be 'letter', 'index', 'number' or 'text', not 'roman'"),
    ],
)
def test_mistakes_in_data_are_told_in_one_line(recipe_file, override, message):
    with pytest.raises(UserError) as error:
        load(recipe_file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def folder_of(recipe):
    return recipe.capabilities["maths"].reward.folder


def test_a_module_beside_the_recipe_is_found_and_travels(recipe_file, tmp_path):
    override = ["capabilities.maths.reward.kind=mine:score"]
    absent = load(recipe_file, override)
    assert folder_of(absent) is None
    (tmp_path / "mine.py").touch()
    recipe = load(recipe_file, override)
    assert folder_of(recipe) == str(tmp_path)
    # The run's own copy lies elsewhere, and a worker has the recipe from the queue.
    copy = load(write_resolved(recipe, tmp_path / "runs" / "mine"))
    assert folder_of(copy) == folder_of(Recipe.model_validate(recipe.model_dump(mode="json"))) == str(tmp_path)
    # Where it lies is no part of what is computed.
    assert (digest(copy), run_id(copy)) == (digest(absent), run_id(absent))


def test_a_module_lies_beside_the_recipe_that_names_it(recipe_file, tmp_path):
    (tmp_path / "mine.py").touch()
    recipe_file.write_text(RECIPE.replace("numeric", "mine:score"))
    (tmp_path / "deeper").mkdir()
    extending = tmp_path / "deeper" / "more.toml"
    extending.write_text('extends = "../own.toml"\nname = "more"\n')
    assert folder_of(load(extending)) == str(tmp_path)


def test_a_benchmarks_reward_has_its_folder_and_its_digest(recipe_file, tmp_path):
    benchmark = """
    [evaluation.sets.exam]
    capability = "maths"
    data = { type = "dataset", name = "rows.jsonl" }
    reward = { kind = "mine:score" }
    """
    recipe_file.write_text(RECIPE + benchmark)
    before = digest(load(recipe_file))
    (tmp_path / "mine.py").touch()
    recipe = load(recipe_file)
    assert recipe.evaluation.sets["exam"].reward.folder == str(tmp_path)
    assert digest(recipe) == before
