"""The arguments of every command that takes a recipe."""

import argparse
from pathlib import Path


def add_recipe_arguments(
    parser: argparse.ArgumentParser, *, help: str | None = None, is_optional: bool = False
) -> None:
    """RECIPE and `--set`, which `load` takes as they come: `load(arguments.recipe, arguments.set)`."""
    parser.add_argument("recipe", nargs="?" if is_optional else None, type=Path, metavar="RECIPE", help=help)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
