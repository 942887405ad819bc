"""From the data that a recipe names to prompts."""

from service.media import Limits
from trainer.data import datasets, reasoning
from trainer.data.generated import prompts as generated_prompts
from trainer.data.prompts import Prompts
from trainer.recipe import Data, MiniatureData, ReasoningGymData


def open_prompts(capability: str, data: Data, *, seed: int, limits: Limits) -> Prompts:
    """The prompts of a capability; `seed` decides which questions are made up."""
    if isinstance(data, MiniatureData):
        return generated_prompts(
            data.name,
            label=capability,
            split=data.split,
            size=data.size,
            seed=seed,
            level=data.level,
            kind=data.type,
        )
    if isinstance(data, ReasoningGymData):
        return reasoning.prompts(data, label=capability, seed=seed, limits=limits)
    return datasets.load(
        data.name,
        capability=capability,
        columns=data.columns.model_dump(exclude={"options"}),
        split=data.split,
        subset=data.subset,
        files=data.files,
        limit=data.limit,
        system=data.system,
        suffix=data.suffix or None,
        media_root=data.media_root,
        on_bad_row=data.on_unreadable,
        frames_fps=data.frames_fps,
        options=data.columns.options or (),
        answer_pattern=data.answer_pattern,
        answer_as=data.answer_as,
        limits=limits,
    )
