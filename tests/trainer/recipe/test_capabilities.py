"""Data and rewards as a recipe states them: keys that came later, and names of runs that stay."""

from pathlib import Path

import pytest

from adapters.errors import UserError
from trainer.recipe.file import digest, load, resolved, run_id

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
    ("name", "run"), [("miniature", "miniature-42f70f58"), ("paper-copd3", "paper-copd3-970fe052")]
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
