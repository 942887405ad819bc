"""`coevo recipes`: the recipes that come with coevo, by the names that every command takes, with what each is for."""

import argparse
import sys

from trainer.recipe.packaged import FOLDER, PARTS, packaged_recipes, purpose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'A recipe of your own builds on one by its name: extends = "miniature"'


def run(arguments: argparse.Namespace) -> int:
    listed = [(name, purpose(file)) for name, file in packaged_recipes().items() if not name.startswith(PARTS)]
    if not sys.stdout.isatty():
        for name, words in listed:
            print(f"{name}\t{words}")
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in listed:
        table.add_row(Text(name, "bold"), Text(words))  # no markup: a sentence may have brackets
    console = Console(highlight=False)
    console.print(table)
    console.print(f"They lie in {FOLDER}", style="dim", soft_wrap=True)
    return 0
