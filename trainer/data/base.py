"""Where a recipe's base lies, and whether it has the words that the recipe asks about.

Left out: whether the recipe fits a machine (`doctor`), and a service's base (`serving`).
"""

from collections.abc import Iterator
from pathlib import Path

from adapters.base import locate
from adapters.errors import UserError
from trainer.miniature.words import building, without_words
from trainer.recipe import MiniatureData, Recipe


def base_of(recipe: Recipe) -> Path:
    """The folder. A UserError if there is none, or if its base cannot read the miniature's questions."""
    name, asked = recipe.base.name, list(dict.fromkeys(_miniature(recipe)))
    try:
        folder = locate(name)
    except UserError as error:
        if not asked or Path(name).exists():
            raise
        raise UserError(f"{error}, or `{building(asked, name)}` trains it") from None
    if missing := without_words(folder, asked):
        raise UserError(
            f"base.name: {name} has no words for {', '.join(missing)}; `{building(asked, 'DIR')}` trains one that has"
        )
    return folder


def _miniature(recipe: Recipe) -> Iterator[str]:
    """What the recipe asks of the miniature, to train on and to measure."""
    own = recipe.capabilities.values()
    benchmarks = (one.data for one in recipe.evaluation.sets.values())
    for data in (*(one.data for one in own), *(one.held_out for one in own), *benchmarks):
        if isinstance(data, MiniatureData):
            yield data.name
