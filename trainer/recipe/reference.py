"""The keys of a recipe, read off its models: as data, as a page, and as a JSON Schema for editors.

Their words are the docstrings under the fields. What holds between keys (`checks`, and validators of the sections) is
no part of it: a schema cannot say that, so only a recipe that is loaded is known to be right.
"""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from adapters.errors import UserError
from trainer.recipe import Recipe, file

Node = dict[str, Any]
"""A schema, or a part of one."""
DRAFT = "http://json-schema.org/draft-07/schema#"
"""The form of the schema. Taplo, which most editors use for TOML, reads none that is newer."""
REQUIRED, NONE = "required", "-"
"""What stands for a default where there is none: the key is needed, or its meaning says what holds without it."""

_DEMANDS = ("required", "discriminator")
"""The keywords of a schema that say which keys must be there. No key of a recipe has such a name."""
_CHOICE = "A table whose `type` says which other keys it has."
_NOUNS = {"string": "text", "boolean": "true or false", "null": "null"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_EXTENDS = {
    "description": "The recipes under this one: files, by their paths from this one. Of several the last lies on top.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "default": [],
}
_TOP = """# Recipe

Every key of a recipe, with its values and its default. `coevo recipe keys WORD` prints those that have WORD in their
path or meaning. NAME is a name of your own, N a number in a list; `null` is written as `--set KEY=null`, or by leaving
the key out.

This page is made from the docstrings in `trainer/recipe/`: `coevo recipe reference > docs/recipe.md`.

## Recipes over recipes

{extending}

So `[method]` in a file takes the place of an inherited `[method]`: keys that it does not repeat have their defaults
again, not the inherited values. `coevo run`, `coevo plan` and `coevo doctor` name the keys that are dropped so.

<!-- docs: file longer.toml -->
```toml
extends = "miniature"
name = "longer"
rollout.max_completion_tokens = 64
```

## Single values

Commands that take a recipe take `--set KEY=VALUE`, as often as you like; later ones win. KEY is spelt as in TOML. VALUE
is read as TOML or `null`, or else as plain text, so that words need no quotes.

```sh
coevo plan miniature --set rollout.group_size=4 --set base.dtype=bfloat16
```

## In an editor

`coevo recipe schema --out recipe.schema.json` writes a JSON Schema. Editors with Taplo (in VS Code: Even Better TOML)
then complete keys, show their meaning, and mark what is wrong, if the recipe begins with this line:

<!-- docs: part of a recipe -->
```toml
#:schema ./recipe.schema.json
```

It asks for no key that a recipe may inherit. What holds between keys is checked by `coevo plan RECIPE`.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """A key: which values it takes, and which it has where a recipe leaves it out."""

    path: str
    value: str
    default: str
    meaning: str
    variant: str = ""
    """The `type` of the table that has it, where the type decides which keys there are."""
    table: str = ""
    """The path of the table that it holds. An equal table that was spelt out before has that one's."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a recipe; the one at the top has no path."""

    path: str
    variant: str
    meaning: str
    keys: tuple[Key, ...]

    @property
    def heading(self) -> str:
        return f"{self.path or 'The top'}{f', type = {self.variant}' if self.variant else ''}"


def tables() -> list[Table]:
    """Every table, in the order of a recipe's sections. Equal ones are spelt out once."""
    root = Recipe.model_json_schema()
    # Branches have a default that pydantic doesn't know: one for each capability.
    root["required"].remove("branches")
    root["properties"] = {file.EXTENDS: _EXTENDS, **root["properties"]}
    return list(_tables("", "", root, {}, root["$defs"], {}))


def keys(word: str = "") -> list[Key]:
    """The keys with `word` in their path, values or meaning."""
    every = [key for table in tables() for key in table.keys]
    matches = [key for key in every if word.lower() in f"{key.path}\n{key.value}\n{key.meaning}".lower()]
    if not matches:
        names: dict[str, str] = {}
        for key in every:
            for name in (key.name, *key.name.split("_")):
                names.setdefault(name, key.path)
        # Whole paths first: somebody may have written out a NAME, as in capabilities.text.data.siz.
        near = difflib.get_close_matches(word, [key.path for key in every], n=1, cutoff=0.7)
        near += [names[name] for name in difflib.get_close_matches(word.rpartition(".")[2], names, n=1)]
        hint = f"did you mean {near[0]}?" if near else "`coevo recipe keys` prints all of them"
        raise UserError(f"{word}: no key has it in its path or meaning; {hint}")
    return matches


def editor_schema() -> Node:
    """The JSON Schema of a recipe's file. It asks for no key that a file may inherit."""
    root = cast(Node, _without_demands(Recipe.model_json_schema(ref_template="#/definitions/{model}")))
    definitions = root.pop("$defs")  # the name of a later draft
    # As `ExplicitEdge` reads it before pydantic looks: a text with an arrow, or the table.
    definitions["ExplicitEdge"] = {
        "anyOf": [{"type": "string", "pattern": "[^ ] *<- *[^ ]"}, definitions["ExplicitEdge"]]
    }
    root["properties"] = {file.EXTENDS: _EXTENDS, **root["properties"]}
    # Without a name it is a part, for others to extend.
    is_whole = {"required": ["name"], "not": {"required": [file.EXTENDS]}}
    whole = {"required": ["base", "capabilities"]}
    return {"$schema": DRAFT, **root, "title": "A recipe", "if": is_whole, "then": whole, "definitions": definitions}


def page() -> str:
    """The reference as Markdown: a section for each table."""
    every = tables()
    anchors = {table.path: _anchor(table.heading) for table in reversed(every)}  # of two variants the first
    _, extending, *_ = (file.__doc__ or "").split("\n\n")  # its second paragraph; the code beside it does what it says
    top = _TOP.format(extending=extending)
    return "\n".join([top, *(line for table in every for line in _section(table, anchors))]).rstrip("\n") + "\n"


def _tables(
    path: str, variant: str, node: Node, defaults: Node, definitions: Node, spelt: dict[str, str]
) -> Iterator[Table]:
    """A table and those under it. `defaults`: what the key that holds it puts in place of its own."""
    rows: list[Key] = []
    under: list[tuple[str, str, Node, Node]] = []
    for name, field in cast(Node, node["properties"]).items():
        key_path = f"{path}.{name}" if path else name
        default = defaults.get(name, field.get("default", REQUIRED if name in node.get("required", ()) else NONE))
        key = Key(key_path, _value(field), _toml(default), _joined(field.get("description", "")), variant)
        if inner := list(_sections(field)):
            sections = [definitions[definition] for _, definition in inner]
            inner_defaults = cast(Node, default) if isinstance(default, dict) else {}
            # A key that is not given has the section's own defaults, so none counts as an empty table.
            # The same sections with other defaults are another table: evaluation.answers has more samples.
            identity = json.dumps([inner, inner_defaults])
            if identity not in spelt:
                spelt[identity] = key_path + inner[0][0]
                tags = [_value(section["properties"]["type"]) for section in sections[1:] and sections] or [""]
                under += [(spelt[identity], *part, inner_defaults) for part in zip(tags, sections, strict=True)]
            key = replace(
                key,
                table=spelt[identity],
                default=key.default if default in (REQUIRED, None) else NONE,
                meaning=key.meaning or (_CHOICE if len(sections) > 1 else _joined(sections[0]["description"])),
            )
        rows.append(key)
    yield Table(path, variant, _joined(node["description"]), tuple(rows))
    for inner_path, tag, section, inner_defaults in under:
        yield from _tables(inner_path, tag, section, inner_defaults, definitions, spelt)


def _sections(field: Node) -> Iterator[tuple[str, str]]:
    """The sections in a field: the path from its key to them, and their definitions."""
    if "$ref" in field:
        yield "", field["$ref"].rpartition("/")[2]
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from _sections(option)
    # A table of tables by names, and a list of tables: what a path has between its key and theirs.
    for suffix, keyword in ((".NAME", "additionalProperties"), (".N", "items")):
        if isinstance(entry := field.get(keyword), dict):
            for deeper, definition in _sections(cast(Node, entry)):
                yield suffix + deeper, definition


def _value(field: Node) -> str:
    """The values of a key, in words: `integer ≥ 1`."""
    if "anyOf" in field:
        *options, last = (_value(option) for option in field["anyOf"])
        # The comma, as the last of the others may be a list of choices itself.
        return f"{' or '.join(options)}{', or null' if last == 'null' else f' or {last}'}"
    if "$ref" in field or "oneOf" in field:
        return "table"
    if choices := field.get("enum") or ([field["const"]] if "const" in field else None):
        texts = [json.dumps(choice) for choice in cast(Sequence[object], choices)]
        return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
    if field["type"] == "array":
        # A tuple of a fixed length has an entry for each place: they are alike, so the first says it.
        entries = field.get("prefixItems") or [field["items"]]
        number = f" of {len(entries)}" if "prefixItems" in field else ""
        return f"list{number}, each {_value(entries[0])}"
    if field["type"] == "object":
        entry = field["additionalProperties"]  # True: whatever another library takes
        return f"{_value(entry) if isinstance(entry, dict) else 'any value'} by NAME"
    bounds = [f"{sign} {field[keyword]:,}" for keyword, sign in _BOUNDS.items() if keyword in field]
    return " ".join(filter(None, (_NOUNS.get(field["type"], field["type"]), ", ".join(bounds))))


def _without_demands(node: object) -> object:
    """A schema in which tables may have any of their keys."""
    if isinstance(node, list):
        return [_without_demands(entry) for entry in cast(list[object], node)]
    if not isinstance(node, dict):
        return node
    schema = {key: _without_demands(value) for key, value in cast(Node, node).items() if key not in _DEMANDS}
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")  # a table without its type may fit several
    return schema


def _section(table: Table, anchors: dict[str, str]) -> Iterator[str]:
    yield from (f"## {table.heading}", "", table.meaning, "", "| key | values | default | meaning |")
    yield "| --- | --- | --- | --- |"
    for key in table.keys:
        value = f"{key.value}: [{key.table}](#{anchors[key.table]})" if key.table else key.value
        default = key.default if key.default in (REQUIRED, NONE) else f"`{key.default}`"
        # A bar would end the cell.
        cells = [cell.replace("|", "\\|") for cell in (f"`{key.name}`", value, default, key.meaning)]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _joined(text: str) -> str:
    """A docstring on one line."""
    return " ".join(text.split())


def _toml(default: object) -> str:
    """A default as a recipe spells it, or why there is none. TOML and JSON spell all but tables alike."""
    return str(default) if default in (REQUIRED, NONE) else json.dumps(default)


def _anchor(heading: str) -> str:
    """The name that GitHub gives to a heading."""
    # As GitHub makes it: two spaces around a sign that goes become two dashes.
    letters = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "_- ")
    return letters.replace(" ", "-")
