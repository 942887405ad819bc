"""Where a recipe's base lies, and whether it can take what the recipe asks: the words, and the media."""

import json
from pathlib import Path

from adapters.architectures import read_architecture
from adapters.base import locate
from adapters.errors import UserError
from trainer.data.generated import generated
from trainer.miniature.words import building, without_words
from trainer.realbase.cache import REAL
from trainer.recipe import Data, DatasetData, MiniatureData, Recipe


def base_of(recipe: Recipe) -> Path:
    """The folder of the base. A UserError if there is none, or if its base cannot read what is asked."""
    name = recipe.base.name
    made_up = [data for data in recipe.data.values() if isinstance(data, MiniatureData)]
    toys = list(dict.fromkeys(data.name for data in made_up if data.type == "miniature"))  # any base reads real words
    try:
        folder = locate(name)
    except UserError as error:
        # A folder that is there but is no base may be anything: nobody is told to build over it.
        if not toys or Path(name).exists() or name == REAL:
            raise
        raise UserError(f"{error}, or `{building(toys, name)}` trains it") from None
    if missing := without_words(folder, toys):
        raise UserError(
            f"base.name: {name} has no words for {', '.join(missing)}; `{building(toys, 'DIR')}` trains one that has"
        )
    architecture = read_architecture(folder)
    if (allowed := architecture.adapter_modules) and not set(recipe.lora.modules) <= set(allowed):
        raise UserError(f"lora.modules: adapters of {name} must leave the others alone; set {json.dumps(allowed)}")
    shown = [path for path, data in recipe.data.items() if _has_media(data)]
    if shown and not architecture.has_vision:
        raise UserError(
            f"base.name: {name} ({architecture.model_type}) reads text alone, and {', '.join(shown)} "
            f"{'has' if len(shown) == 1 else 'have'} images or videos; take a base with vision, or leave them out"
        )
    return folder


def _has_media(data: Data) -> bool:
    if isinstance(data, MiniatureData):
        return generated(data.name, data.type).media != "none"
    return isinstance(data, DatasetData) and bool(data.columns.images or data.columns.videos)
