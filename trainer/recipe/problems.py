"""What is wrong with a recipe, in one line: the path as its file spells it, the mistake, the nearest right key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Tree = dict[str, Any]
"""A recipe, or a table of it, as a file has it."""
Override = tuple[tuple[str, ...], Any]
"""A value of `--set`: the keys that lead to it, and itself."""

_SHOWN = 3
"""Problems in one line; the rest is counted. One mistake often has several, and a screen has room for about three."""


def one_line(recipe: type[BaseModel], error: ValidationError, tree: Tree, changes: Sequence[Override]) -> str:
    """The first problems of a recipe and how many more there are."""
    known = list(_known_paths(recipe, tree))
    details = error.errors(include_url=False)
    problems = [problem for detail in details for problem in _problems(detail, tree, known, changes)]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _problems(details: ErrorDetails, tree: Tree, known: Sequence[str], changes: Sequence[Override]) -> Iterator[str]:
    path, override = _path(details["loc"], tree), ""
    is_unknown = details["type"] == "extra_forbidden"
    for changed in (".".join(keys) for keys, _ in changes):
        # Set by this override: the key itself or one under it; or the unknown section that it brought in.
        if path == changed or path.startswith(f"{changed}.") or (is_unknown and changed.startswith(f"{path}.")):
            override = changed
            break
    shown_path = max(path, override, key=len)
    text = f"unknown key; {_nearest_key(shown_path, known)}" if is_unknown else _text(details)
    for line in text.splitlines():  # the recipe's own checks find several problems at once
        yield f"{'--set ' if override else ''}{shown_path}: {line}" if shown_path else line


def _path(location: Sequence[int | str], tree: Tree) -> str:
    """The path as the file spells it: without the tag of a union and the mark of a bad key, which pydantic puts in."""
    # Followed along the tree: only there one sees whether a word is a key of the file's, or pydantic's own.
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
        return 'no type; add type = "dataset", "reasoning-gym", "miniature" or "real"'
    if kind == "union_tag_invalid":
        return f"type {context['tag']!r} is unknown; take one of {context['expected_tags']}"
    # pydantic's own words, in the voice of the other messages.
    given = "null" if details["input"] is None else repr(details["input"])
    rule = details["msg"].replace("Input should be", "must be").partition(", unable")[0]
    # Cut, because what was given may be a whole table.
    return f"{rule}, not {given if len(given) < 60 else given[:57] + '...'}"


def _nearest_key(path: str, known: Sequence[str]) -> str:
    """The path that was meant, or the keys that there are."""
    parent, _, key = path.rpartition(".")
    beside = {
        known_path.rpartition(".")[2]: known_path for known_path in known if known_path.rpartition(".")[0] == parent
    }
    elsewhere = [known_path for known_path in known if known_path.rpartition(".")[2] == key]
    # Likeliest first: a slip in the key; the right key in the wrong section; a worse slip; a slip in the section.
    near = [
        *(beside[name] for name in difflib.get_close_matches(key, beside, n=1, cutoff=0.75)),
        *elsewhere,
        *(beside[name] for name in difflib.get_close_matches(key, beside, n=1, cutoff=0.6)),
        *difflib.get_close_matches(path, known, n=1, cutoff=0.6),
    ]
    if near:
        return f"did you mean {near[0]}?"
    names = beside or [known_path for known_path in known if "." not in known_path]
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
        elif get_origin(field.annotation) is not tuple:  # the keys of a list are numbers, nobody mistypes those
            if len(inner) > 1 and isinstance(value, dict):  # a union: only the model that `type` names has these keys
                tag = cast(Tree, value).get("type")
                inner = [section for section in inner if tag in get_args(section.model_fields["type"].annotation)]
            for section in inner:
                yield from _known_paths(section, value, f"{path}.")


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
