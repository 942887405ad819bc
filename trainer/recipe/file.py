"""Reads a recipe from its file, sets single values over it, writes what came out.

A recipe may extend others, `extends = "miniature.toml"` or a list: their keys under its own, the last first. `method`
and `branches` are one statement each, so they are taken whole; and a capability that was inherited is left out where
the branches that the recipe names do not use it.

Every mistake ends in a one-line `RecipeError`: the file, the path of the key, what is wrong, the nearest right key.
A resolved recipe is JSON, because TOML has no null; it lies beside its run and loads to an equal recipe.
"""

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapters.errors import UserError
from trainer.recipe import ComparisonConfig, Recipe, with_branches

Tree = dict[str, Any]
Override = tuple[tuple[str, ...], Any]

EXTENDS = "extends"
WHOLE = frozenset({"method", "branches"})

_SHOWN = 3  # problems in one line; the rest is counted


class RecipeError(UserError):
    """A recipe that cannot be read, or that says something that cannot be. One line, whatever it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` (TOML, or resolved JSON) with `a.b=c` values set over it."""
    tree = _read(path)
    changes = [_parse_override(override) for override in overrides]
    changes.sort(key=lambda change: change[0][0] == "branches")  # the others decide which branches there are
    for keys, value in changes:
        if keys[0] == "branches":
            tree = with_branches(tree)
        _set(tree, keys, value)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_one_line(error, tree, changes)}") from None


def resolved(recipe: Recipe) -> str:
    """The recipe with every default spelt out, as JSON."""
    return recipe.model_dump_json(indent=2) + "\n"


def digest(recipe: Recipe) -> str:
    """Identity of what the recipe says; the order of branches counts, because a ring follows it."""
    return f"sha256:{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()}"


def run_id(recipe: Recipe) -> str:
    """The same for everything that computes the same: not the budget, the trackers, or what is compared besides."""
    plain = recipe.model_copy(update={"budget": type(recipe.budget)(), "tracking": type(recipe.tracking)()})
    if plain.comparison is not None:
        plain = plain.model_copy(update={"comparison": ComparisonConfig()})
    return f"{recipe.name}-{digest(plain).removeprefix('sha256:')[:8]}"


def write_resolved(recipe: Recipe, folder: Path) -> Path:
    """Write `recipe.json` into `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / "recipe.json", folder / f".recipe.json.{os.getpid()}"
    with part.open("w") as file:
        file.write(resolved(recipe))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def _read(path: Path, below: tuple[Path, ...] = ()) -> Tree:
    """With what it extends. `below`: the recipes that extend this one."""
    own = _parse(path)
    named = own.pop(EXTENDS, [])
    names = cast(list[Any], named if isinstance(named, list) else [named])
    if not all(isinstance(name, str) for name in names):
        raise RecipeError(f"{path}: {EXTENDS}: write the file of a recipe, or a list of such")
    here = path.resolve()
    if here in below:
        raise RecipeError(f"{path}: {EXTENDS}: it comes back to itself; leave one of them out")
    inherited: Tree = {}
    for name in names:
        inherited = _over(inherited, _read(path.parent / name, (*below, here)))
    tree = _over(inherited, own)
    if "branches" in own:
        _leave_out_unused(tree, own)
    return tree


def _over(under: Tree, own: Tree, *, is_top: bool = True) -> Tree:
    """Tables are merged, all else is replaced."""
    merged = dict(under)
    for key, value in own.items():
        old = merged.get(key)
        is_whole = is_top and key in WHOLE
        if isinstance(old, dict) and isinstance(value, dict) and not is_whole:
            merged[key] = _over(cast(Tree, old), cast(Tree, value), is_top=False)
        else:
            merged[key] = value
    return merged


def _leave_out_unused(tree: Tree, own: Tree) -> None:
    branches, capabilities = own["branches"], tree.get("capabilities")
    if not (isinstance(branches, dict) and isinstance(capabilities, dict)):
        return  # what is wrong is told of the whole
    tables = [cast(Tree, one) for one in cast(Tree, branches).values() if isinstance(one, dict)]
    used = {str(name) for one in tables for name in cast(list[Any], one.get("capabilities") or [])}
    kept = used | set(cast(Tree, own.get("capabilities") or {}))
    tree["capabilities"] = {name: one for name, one in cast(Tree, capabilities).items() if name in kept}


def _parse(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe; {_nearest_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); give the path of a recipe's .toml file") from None
    except ValueError as error:  # tomllib's and json's own errors
        raise RecipeError(f"{path}: not {path.suffix.lstrip('.') or 'toml'}: {error}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a recipe; a resolved recipe is one JSON object")
    return cast(Tree, tree)


def _nearest_file(path: Path) -> str:
    recipes = sorted(other.name for other in path.parent.glob("*.toml"))
    near = difflib.get_close_matches(path.name, recipes, n=1)
    if near:
        return f"did you mean {path.with_name(near[0])}?"
    return f"{path.parent} has {', '.join(recipes)}" if recipes else f"{path.parent} has no .toml files"


def _parse_override(override: str) -> Override:
    """`a.b=c`: the key as TOML spells keys; the value as TOML, `null`, or else a plain string."""
    key, equals, value = (part.strip() for part in override.partition("="))
    if not equals:
        raise RecipeError(f"--set {override}: no value; write it as KEY=VALUE, such as rollout.group_size=4")
    keys: list[str] = []
    node: Any = _parse_key(key)
    while isinstance(node, dict) and len(cast(Tree, node)) == 1:
        ((name, node),) = cast(Tree, node).items()
        keys.append(name)
    if not keys or node != 0:
        raise RecipeError(f"--set {override}: {key!r} is no key; write it as rollout.group_size")
    return tuple(keys), _parse_value(value)


def _parse_key(key: str) -> Tree:
    try:
        return tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return {}


def _parse_value(text: str) -> Any:
    if text == "null":
        return None
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    plain = isinstance(tree["value"], bool | int | float | str | list | dict) and len(tree) == 1
    return tree["value"] if plain else text


def _set(tree: Tree, keys: Sequence[str], value: Any) -> None:
    node = tree
    for depth, key in enumerate(keys[:-1], start=1):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise RecipeError(f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is a value, it has no keys under it")
    node[keys[-1]] = value


def _one_line(error: ValidationError, tree: Tree, changes: Sequence[Override]) -> str:
    known = list(_known_paths(Recipe, tree))
    details = error.errors(include_url=False)
    problems = [problem for one in details for problem in _problems(one, tree, known, changes)]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _problems(details: ErrorDetails, tree: Tree, known: Sequence[str], changes: Sequence[Override]) -> Iterator[str]:
    path = _path(details["loc"], tree)
    unknown = details["type"] == "extra_forbidden"
    changed = next((".".join(keys) for keys, _ in changes if _blames(path, ".".join(keys), unknown)), "")
    place = max(path, changed, key=len)
    text = f"unknown key; {_nearest_key(place, known)}" if unknown else _text(details)
    for line in text.splitlines():  # our own checks find several at once
        yield f"{'--set ' if changed else ''}{place}: {line}" if place else line


def _blames(path: str, changed: str, unknown: bool) -> bool:
    """Whether what is wrong at `path` was set by an override of `changed`."""
    return path == changed or path.startswith(f"{changed}.") or (unknown and changed.startswith(f"{path}."))


def _path(location: Sequence[int | str], tree: Tree) -> str:
    """The path as the file spells it: without the tag of a union and the mark of a bad key, which pydantic puts in."""
    node: Any = tree
    parts: list[str] = []
    for part in location:
        if part == "[key]":
            continue
        if isinstance(node, dict):
            table = cast(Tree, node)
            if part not in table and table.get("type") == part:
                continue
            node = table.get(str(part))
        elif isinstance(node, list) and isinstance(part, int):
            node = cast(list[Any], node)[part] if part < len(cast(list[Any], node)) else None
        parts.append(str(part))
    return ".".join(parts)


def _text(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "missing":
        return "missing; add it"
    if kind == "too_short":
        return "empty; name at least one"
    if kind in ("model_type", "dict_type"):
        return "must be a table"
    if kind == "value_error":
        return str(context["error"])
    if kind == "union_tag_not_found":
        return 'no type; add type = "miniature" or type = "dataset"'
    if kind == "union_tag_invalid":
        return f"type {context['tag']!r} is unknown; take one of {context['expected_tags']}"
    given = "null" if details["input"] is None else repr(details["input"])
    rule = details["msg"].replace("Input should be", "must be").partition(", unable")[0]
    return f"{rule}, not {given if len(given) < 60 else given[:57] + '...'}"


def _nearest_key(path: str, known: Sequence[str]) -> str:
    """The path that was meant: most often a key beside the wrong one, or the same key in another section."""
    parent, _, key = path.rpartition(".")
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == parent}
    elsewhere = [other for other in known if other.rpartition(".")[2] == key]
    near = [
        *(beside[name] for name in difflib.get_close_matches(key, beside, n=1, cutoff=0.75)),
        *elsewhere,
        *(beside[name] for name in difflib.get_close_matches(key, beside, n=1, cutoff=0.6)),
        *difflib.get_close_matches(path, known, n=1, cutoff=0.6),
    ]
    if near:
        return f"did you mean {near[0]}?"
    names = beside or [other for other in known if "." not in other]
    return f"{parent if beside and parent else 'a recipe'} has {', '.join(names)}"


def _known_paths(model: type[BaseModel], tree: object, prefix: str = "") -> Iterator[str]:
    """Every path that a recipe can have, with the names that this one gives to its capabilities and branches."""
    values = cast(Mapping[str, object], tree) if isinstance(tree, dict) else {}
    for name, field in model.model_fields.items():
        path, value = f"{prefix}{name}", values.get(name)
        yield path
        inner = _models(field.annotation)
        if get_origin(field.annotation) is dict:
            for key, entry in cast(Tree, value).items() if isinstance(value, dict) else ():
                yield f"{path}.{key}"
                for entry_model in inner:
                    yield from _known_paths(entry_model, entry, f"{path}.{key}.")
        elif get_origin(field.annotation) is not tuple:
            for section in _chosen(inner, value):
                yield from _known_paths(section, value, f"{path}.")


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _chosen(models: Sequence[type[BaseModel]], value: object) -> Sequence[type[BaseModel]]:
    """Of a union, the model that `type` names."""
    if len(models) < 2 or not isinstance(value, dict):
        return models
    tag = cast(Tree, value).get("type")
    return [model for model in models if tag in get_args(model.model_fields["type"].annotation)]
