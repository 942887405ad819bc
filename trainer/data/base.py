"""Where a recipe's base lies, and whether it has the words that the recipe asks about."""

from pathlib import Path

from adapters.base import locate
from adapters.errors import UserError
from trainer.miniature.words import building, without_words
from trainer.recipe import MiniatureData, Recipe


def base_of(recipe: Recipe) -> Path:
    """The folder of the base. A UserError if there is none, or if its base cannot read the miniature's questions."""
    capabilities = recipe.capabilities.values()
    sources = [capability.data for capability in capabilities]
    sources += [capability.held_out for capability in capabilities if capability.held_out is not None]
    sources += [benchmark.data for benchmark in recipe.evaluation.sets.values()]
    name = recipe.base.name
    toys = list(dict.fromkeys(data.name for data in sources if isinstance(data, MiniatureData)))
    try:
        folder = locate(name)
    except UserError as error:
        # A folder that is there but is no base may be anything: nobody is told to build over it.
        if not toys or Path(name).exists():
            raise
        raise UserError(f"{error}, or `{building(toys, name)}` trains it") from None
    if missing := without_words(folder, toys):
        raise UserError(
            f"base.name: {name} has no words for {', '.join(missing)}; `{building(toys, 'DIR')}` trains one that has"
        )
    return folder
