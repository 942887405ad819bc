"""`coevo recipe`: what a recipe may say. `keys [WORD]` for people, `schema` for editors, `reference` for the docs."""

import argparse
import json
import textwrap
from pathlib import Path

from rich.console import Console
from rich.text import Text

from adapters.errors import UserError
from trainer.recipe.reference import NONE, REQUIRED, Key, editor_schema, keys, page

_INDENT = " " * 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("keys", help="every key: values, default, meaning")
    listing.add_argument("word", nargs="?", default="", metavar="WORD", help="only keys with it in path or meaning")
    schema = actions.add_parser("schema", help="a JSON Schema, with which editors complete and check a recipe")
    schema.add_argument("--out", type=Path, metavar="FILE", help="where to write it [printed]")
    actions.add_parser("reference", help="the page of the docs, as Markdown")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "keys":
        _show(keys(arguments.word))
        return 0
    if arguments.action == "reference":
        print(page(), end="")
        return 0
    schema, path = json.dumps(editor_schema(), indent=2, ensure_ascii=False), arguments.out
    if path is None:
        print(schema)
        return 0
    # UTF-8 whatever the locale: editors read nothing else.
    try:
        path.write_text(schema + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); name a file in a folder") from None
    print(f"{path}: for a recipe beside it, whose first line is: #:schema ./{path.name}")
    return 0


def _show(listed: list[Key]) -> None:
    # No markup and no highlighting: a meaning may have brackets, and numbers in it are no results.
    console = Console(markup=False, highlight=False)
    for key in listed:
        console.print(Text(key.path, "bold") + Text(f"  with type = {key.variant}" if key.variant else "", "dim"))
        # Where the table is an equal one's, its keys are listed there.
        elsewhere = "" if key.table.startswith(key.path) else f", as {key.table}"
        default = {REQUIRED: "; required", NONE: ""}.get(key.default, f"; default {key.default}")
        # By textwrap, as rich would fill lines with blanks up to the width.
        for text, style in ((key.value + (elsewhere if key.table else "") + default, "cyan"), (key.meaning, "")):
            lines = textwrap.wrap(text, console.width - len(_INDENT), break_on_hyphens=False)
            console.print(
                Text(textwrap.indent("\n".join(lines), _INDENT), style), soft_wrap=True, end="\n" if lines else ""
            )
