"""The reference of keys: complete, right about defaults and ranges, and the page of the docs as it stands."""

import tomllib
from pathlib import Path

import jsonschema
import pytest

from adapters.errors import UserError
from trainer.recipe import Recipe, file
from trainer.recipe.file import load
from trainer.recipe.parts import Section
from trainer.recipe.reference import NONE, REQUIRED, editor_schema, keys, page, tables

ROOT = Path(__file__).parents[3]
RECIPES = [path for folder in ("recipes", "examples") for path in sorted((ROOT / folder).rglob("*.toml"))]
VALIDATOR = jsonschema.Draft7Validator(editor_schema())
WHOLE = """
name = "small"
base.name = "miniature"
capabilities.text.data = { type = "miniature", name = "text" }
capabilities.text.reward.kind = "exact"
"""


def key(path: str, variant: str = ""):
    (match,) = [key for key in keys(path) if key.path == path and key.variant == variant]
    return match


def said(recipe: Path, override: str) -> str:
    try:
        load(recipe, [override])
    except UserError as error:
        return str(error)
    return ""


def complaints(text: str) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(tomllib.loads(text))]


def test_page_of_the_docs_is_what_the_models_say() -> None:
    text = (ROOT / "docs/recipe.md").read_text()
    assert text == page(), "make it anew: coevo recipe reference > docs/recipe.md"


def test_page_says_which_tables_are_taken_whole() -> None:
    for name in file.WHOLE:
        assert f"`{name}`" in page().partition("## The top")[0]


def test_every_field_of_every_section_has_a_key() -> None:
    # In both directions: a key that no section has would be a mistake of the walk.
    listed = {name for table in tables() for name in (key.name for key in table.keys)}
    fields = {name for section in Section.__subclasses__() for name in section.model_fields}
    assert listed == {*fields, *Recipe.model_fields, file.EXTENDS}


@pytest.mark.parametrize("variant", ["miniature", "real", "dataset"])
def test_every_path_is_one_that_set_takes(variant: str, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(WHOLE.replace('type = "miniature"', f'type = "{variant}"'))
    # As a recipe's data is of one type, so are the keys that it takes.
    for key in keys():
        is_other = (key.variant and f'"{variant}"' not in key.variant) or (
            ".data.columns." in key.path and variant != "dataset"
        )
        if is_other or key.path == file.EXTENDS or ".N." in key.path:
            continue
        path, value = key.path.replace("NAME", "text"), "3" if key.default in (REQUIRED, NONE) else key.default
        # The value may not fit the others, but the key is one.
        assert "unknown key" not in said(recipe, f"{path}={value}"), path


def test_keys_have_values_ranges_and_defaults() -> None:
    assert (key("rollout.prompts").value, key("rollout.prompts").default) == ("integer ≥ 1", "32")
    assert key("loss.eps_low").value == "number > 0, < 1"
    assert key("merge.method").value == '"none", "mean", "ties" or "svd"'
    assert key("merge.weights").value == "number by NAME"
    assert key("extends").value == "text or list, each text"
    assert key("optimiser.betas").value == "list of 2, each number ≥ 0, < 1"
    assert (key("rollout.opd_prompts").value, key("rollout.opd_prompts").default) == ("integer ≥ 1, or null", "null")
    assert key("base.name").default == REQUIRED
    assert key("branches").default != REQUIRED
    assert key("method.kind").meaning.startswith("The kind of system. base: no training.")


def test_a_default_that_a_section_has_in_its_place_counts() -> None:
    assert key("evaluation.answers.samples").default == "4"
    assert key("evaluation.sets.NAME.answers.samples").default == "0"


def test_each_kind_of_data_has_its_keys_and_equal_tables_are_spelt_once() -> None:
    generated = '"miniature" or "real"'
    assert key("capabilities.NAME.data.size", generated).default == "2000"
    assert key("capabilities.NAME.data.split", generated).default == '"train"'
    assert key("capabilities.NAME.data.split", '"dataset"').value == "text"
    assert key("evaluation.sets.NAME.data").table == "capabilities.NAME.data"
    assert "capabilities.NAME.held_out.size" not in {key.path for key in keys()}


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("rolout", "rollout"),
        ("gruop", "rollout.group_size"),
        ("grupsize", "rollout.group_size"),
        ("capabilities.text.data.size", "capabilities.NAME.data.size"),
        ("rollout.grup_size", "rollout.group_size"),
    ],
)
def test_a_word_that_no_key_has_names_the_nearest(word: str, nearest: str) -> None:
    with pytest.raises(UserError, match="no key has it") as error:
        keys(word)
    assert f"did you mean {nearest}?" in str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_takes_every_shipped_recipe_as_it_is_written(path: Path) -> None:
    assert complaints(path.read_text()) == []


def test_the_schema_itself_is_valid_and_takes_what_is_resolved() -> None:
    # A resolved recipe is JSON, with nulls that TOML has not.
    jsonschema.Draft7Validator.check_schema(editor_schema())
    tree = load(ROOT / "recipes/miniature.toml").model_dump(mode="json")
    assert [error.message for error in VALIDATOR.iter_errors(tree)] == []


@pytest.mark.parametrize(
    "line",
    [
        "rollout.group_size = 4",
        "capabilities.text.data.size = 5",
        'method = { topology = "explicit", edges = ["text <- image", { student = "image", teacher = "text" }] }',
    ],
)
def test_the_schema_takes_parts_of_tables_where_one_extends(line: str) -> None:
    # None of them would be a whole table by itself.
    assert complaints(f'extends = "small.toml"\n{line}') == []
    assert complaints(f'extends = ["small.toml", "part.toml"]\n{line}') == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("lora.rnak = 3", "'rnak' was unexpected"),
        ("rolout.prompts = 3", "'rolout' was unexpected"),
        ("rollout.prompts = 0", "0 is less than the minimum of 1"),
        ("loss.std = 4", "4 is not of type 'boolean'"),
        ("method.kind = 'cop'", "'cop' is not one of"),
        ("method.edges = ['text - image']", "'text - image' is not valid under any"),
        ("extends = 3", "3 is not valid under any"),
    ],
)
def test_the_schema_refuses_what_a_recipe_would_be_refused_for(line: str, complaint: str) -> None:
    (message,) = complaints(WHOLE + line)
    assert complaint in message


def test_the_schema_asks_a_whole_recipe_for_its_base() -> None:
    assert complaints(WHOLE) == []
    assert complaints('name = "x"') == ["'base' is a required property", "'capabilities' is a required property"]
