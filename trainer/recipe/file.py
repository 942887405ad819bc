"""Reads a recipe from its file, sets single values over it, writes what came out.

A recipe may extend others, `extends = "miniature"` or a list: their keys under its own, the last first. Without `.toml`
it is the name of a recipe that comes with coevo, unless a file of that name lies beside. `method` and `branches` are
one statement each, so they are taken whole; and a capability that was inherited is left out where the branches that the
recipe names do not use it.

Every mistake ends in a one-line `RecipeError`: the file, the path of the key, what is wrong, the nearest right key.
A resolved recipe is JSON, because TOML has no null; it lies beside its run and loads to an equal recipe.
"""

import difflib
import hashlib
import json
import logging
import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from adapters.errors import UserError
from trainer.recipe import ComparisonConfig, MethodConfig, Recipe, with_branches
from trainer.recipe.functions import FOLDERS, place_functions
from trainer.recipe.packaged import locate_recipe, nearest_recipe
from trainer.recipe.problems import Override, Tree, one_line

EXTENDS = "extends"
"""The key that names the recipes under this one. It is of the file, not of the recipe."""
WHOLE = frozenset({"method", "branches"})
"""Sections that are taken whole: half of one method and half of another would be a third that nobody wrote."""

_log = logging.getLogger(__name__)


class RecipeError(UserError):
    """A recipe that cannot be read, or that says something that cannot be. One line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` (TOML, or resolved JSON) with `a.b=c` values set over it."""
    tree, notes = _read(locate_recipe(path, Path()))
    for note in notes:
        _log.warning("%s", note)
    changes = [_parse_override(override) for override in overrides]
    # Branches last, whatever the order on the command line: the other values decide which branches there are.
    changes.sort(key=lambda change: change[0][0] == "branches")
    for keys, value in changes:
        if keys[0] == "branches":
            tree = with_branches(tree)  # or a key set in a branch would seem to be the only branch there is
        _set(tree, keys, value)
    place_functions(tree, path.parent)  # those of `--set`
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{path}: {one_line(Recipe, error, tree, changes)}") from None


def resolved(recipe: Recipe) -> str:
    """The recipe with every default spelt out, as JSON."""
    return recipe.model_dump_json(indent=2) + "\n"


def digest(recipe: Recipe) -> str:
    """The identity of what the recipe says."""
    # Not with sorted keys: the order of branches counts, because a ring follows it.
    return f"sha256:{hashlib.sha256(recipe.model_dump_json(exclude=FOLDERS).encode()).hexdigest()}"


def run_id(recipe: Recipe) -> str:
    """The name of a run: the same for all recipes that compute the same."""
    # So the same folder is found again with another budget, other records or trackers, more cards, or more systems to
    # compare.
    free = ("budget", "worker", "rollouts", "tracking")
    changes: dict[str, object] = {name: type(getattr(recipe, name))() for name in free}
    changes["engine"] = recipe.engine.model_copy(update={"data_parallel": 1, "tensor_parallel": 1})
    if recipe.base.dtype == "auto":  # bfloat16 on cards: a run that said so goes on without saying it
        changes["base"] = recipe.base.model_copy(update={"dtype": "bfloat16"})
    plain = recipe.model_copy(update=changes)
    if plain.comparison is not None:
        plain = plain.model_copy(update={"comparison": ComparisonConfig()})
    return f"{recipe.name}-{digest(plain).removeprefix('sha256:')[:8]}"  # short: it names folders


def write_resolved(recipe: Recipe, folder: Path) -> Path:
    """Write `recipe.json` into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    # A name for each process: two that start the same run must not write into one draft.
    path, part = folder / "recipe.json", folder / f".recipe.json.{os.getpid()}"
    with part.open("w") as file:
        file.write(resolved(recipe))
        file.flush()
        os.fsync(file.fileno())  # before the rename: a crash must not leave the name on an empty file
    part.replace(path)
    return path


def _read(path: Path, extending: tuple[Path, ...] = ()) -> tuple[Tree, list[str]]:
    """A recipe over those that it extends, and what it drops of them. `extending`: the files that led here."""
    layer = _parse(path)
    place_functions(layer, path.parent)  # of each file by itself: an extended one may lie elsewhere
    named = layer.pop(EXTENDS, [])
    names = cast(list[Any], named if isinstance(named, list) else [named])
    if not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{path}: {EXTENDS}: write the file or the name of a recipe, or a list of such")
    here = path.resolve()
    if here in extending:
        raise RecipeError(f"{path}: {EXTENDS}: it comes back to itself; leave one of them out")
    inherited: Tree = {}
    notes: list[str] = []
    for name in names:
        # Without its notes: those are for who runs that recipe.
        file = locate_recipe(Path(name), path.parent, (*extending, here))
        extended, _ = _read(file, (*extending, here))
        notes += _dropped(file, extended, inherited)
        inherited = _over(inherited, extended)
    notes += _dropped(path, layer, inherited)
    tree = _over(inherited, layer)
    branches, capabilities = layer.get("branches"), tree.get("capabilities")
    # What is no table or no list is left as it stands: it is a mistake, which the whole recipe's check names.
    if isinstance(branches, dict) and isinstance(capabilities, dict):
        tables = [cast(Tree, table) for table in cast(Tree, branches).values() if isinstance(table, dict)]
        uses = [table.get("capabilities", []) for table in tables]
        if all(isinstance(use, list) for use in uses):
            wanted = {str(name) for use in uses for name in cast(list[Any], use)}
            wanted |= set(cast(Tree, layer.get("capabilities") or {}))  # its own stay: unused ones are a mistake
            tree["capabilities"] = {key: table for key, table in cast(Tree, capabilities).items() if key in wanted}
    return tree, notes


def _dropped(path: Path, layer: Tree, inherited: Tree) -> Iterator[str]:
    """A line for each table that takes an inherited one's place and is silent about values that this had set."""
    defaults = {name: field.default for name, field in MethodConfig.model_fields.items()}
    for table in sorted(WHOLE):
        old, new = inherited.get(table), layer.get(table)
        if isinstance(old, dict) and isinstance(new, dict):
            if table == "method" and new.get("kind", "copd") != old.get("kind", "copd"):
                continue  # another system: what the old one had set means nothing to it
            # A value that was the default is no loss, and a hub none to a topology that has no hub.
            keys = [key for key, value in cast(Tree, old).items() if key not in new and value != defaults.get(key)]
            if new.get("topology", "hub") != "hub":
                keys = [key for key in keys if key != "hub"]
            if keys:
                names = ", ".join(keys)
                replaced = f"[{table}] replaces the inherited table whole, without its {names}"
                yield f"{path}: {replaced}; repeat what is to stay"


def _over(under: Tree, layer: Tree, *, is_top: bool = True) -> Tree:
    """The layer over what lies under it: tables are merged, all else is replaced."""
    merged = dict(under)
    for key, value in layer.items():
        old = merged.get(key)
        is_whole = is_top and key in WHOLE
        if isinstance(old, dict) and isinstance(value, dict) and not is_whole:
            merged[key] = _over(cast(Tree, old), cast(Tree, value), is_top=False)
        else:
            merged[key] = value
    return merged


def _parse(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        recipes = sorted(file.name for file in path.parent.glob("*.toml"))
        there = ", ".join(recipes) or "no .toml files"
        hint = f"{path.parent} has {there}; `coevo recipes` lists those that come with coevo"
        if near := difflib.get_close_matches(path.name, recipes, n=1):
            hint = f"did you mean {path.with_name(near[0])}?"
        elif name := nearest_recipe(path):
            hint = f"did you mean {name}, which comes with coevo?"
        raise RecipeError(f"{path}: no such recipe; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give the path of a recipe's .toml file") from None
    except ValueError as error:  # tomllib's and json's own errors
        raise RecipeError(f"{path}: not {path.suffix.lstrip('.') or 'toml'}: {error}") from None
    if not isinstance(tree, dict):  # TOML is always a table, JSON may be anything
        raise RecipeError(f"{path}: not a recipe; a resolved recipe is one JSON object")
    return cast(Tree, tree)


def _parse_override(override: str) -> Override:
    """`a.b=c`: the key as TOML spells keys; the value as TOML, `null`, or else a plain string."""
    key, equals, value = (part.strip() for part in override.partition("="))  # the first one: values may hold more
    if not equals:
        raise RecipeError(f"--set {override}: no value; write it as KEY=VALUE, such as rollout.group_size=4")
    keys: list[str] = []
    try:
        node: Any = tomllib.loads(f"{key} = 0")  # TOML's own parser knows dots, quotes and what a bare key may hold
    except tomllib.TOMLDecodeError:
        node = {}
    while isinstance(node, dict) and len(cast(Tree, node)) == 1:
        ((name, node),) = cast(Tree, node).items()
        keys.append(name)
    if not keys or node != 0:  # the 0 of above is not at the end: there were two keys, or none
        raise RecipeError(f"--set {override}: {key!r} is no key; write it as rollout.group_size")
    return tuple(keys), _parse_value(value)


def _parse_value(text: str) -> Any:
    if text == "null":  # TOML has none
        return None
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A date would not be JSON, and a text with a line break could set a second key: both are plain words.
    plain = isinstance(tree["value"], bool | int | float | str | list | dict) and len(tree) == 1
    return tree["value"] if plain else text


def _set(tree: Tree, keys: Sequence[str], value: Any) -> None:
    node = tree
    for depth, key in enumerate(keys[:-1], start=1):
        node = node.setdefault(key, {})  # known or not: the whole recipe's check names the nearest key
        if not isinstance(node, dict):
            raise RecipeError(f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is a value, it has no keys under it")
    node[keys[-1]] = value
