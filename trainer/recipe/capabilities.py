"""The sections of a recipe that say what there is to get good at: data and rewards."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.recipe.parts import Section

REWARDS = ("math", "choice", "numeric", "exact")
"""The kinds of `trainer.rewards`. Listed here too, because a recipe is read without importing what runs it."""

# Its form only: to import it would run a user's code wherever a recipe is read. `RewardPool.check` does, in a child.
_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


class MiniatureData(Section):
    """Questions that the miniature makes up, from the run's seed."""

    type: Literal["miniature"]
    name: str
    """The toy capability: text, image, video; with a base that has learnt them shapes, order or one of your own."""
    size: int = Field(default=2000, ge=1)
    """The number of different prompts. A run that draws more than there are begins again in another order."""
    level: Literal[1, 2] | None = None
    """The steps of arithmetic in a question; null = both, by turns."""
    split: Literal["train", "validation", "test"] = "train"
    """The split that questions are taken from. Splits share no question."""


class Columns(Section):
    """The columns of a data set. A mark such as `<image>` in the prompt says where the next image goes."""

    prompt: str = "prompt"
    """The column of the question: a text, or chat messages. A dot reaches into a column of objects."""
    answer: str = "answer"
    """The column of the right answer, bare."""
    images: str | None = None
    """The column of images: one or a list, as bytes or as paths under `media_root`; null = none."""
    videos: str | None = None
    """The column of videos: one or a list, as bytes or paths, or a list of images as frames; null = none."""


class DatasetData(Section):
    """Rows of a Hugging Face data set or of a file (jsonl, json, csv, parquet)."""

    type: Literal["dataset"]
    name: str
    """The data set: a name on the hub, a file or a folder."""
    subset: str | None = None
    """The configuration of the data set, where it has several; in a folder, the folder in it."""
    files: str | None = None
    """The file of the data set to take, where it has several; may be a pattern."""
    split: str = "train"
    """The split of the data set. A single file has `train` only."""
    columns: Columns = Columns()
    limit: int | None = Field(default=None, ge=1)
    """The number of usable rows to take, from the first; null = all."""
    system: str | None = None
    """The system message before each prompt; null = none."""
    suffix: str = ""
    """The text added to the end of each prompt, such as how to give the answer."""
    media_root: str | None = None
    """The folder that paths of images and videos start from; nothing outside it is read. null = the file's own."""
    on_unreadable: Literal["error", "drop"] = "error"
    """The treatment of a row that cannot be used, such as one with a damaged image. `drop` goes on without it, and
    counts it."""
    frames_fps: float = Field(default=2.0, gt=0)
    """The frames a second of a video that is given as a list of images."""


Data = Annotated[MiniatureData | DatasetData, Field(discriminator="type")]


class RewardConfig(Section):
    """The check of an answer."""

    kind: str
    """The check: math, choice, numeric, exact, or a function of your own as `module:function`."""
    format_share: float = Field(default=0.1, ge=0, lt=1)
    """The share of the reward that is for giving the answer in the asked form. 0 = only being right counts."""
    format_pattern: str | None = None
    """The pattern that a completion in the asked form matches from end to end; null = it has exactly one full
    \\boxed{}."""
    tolerance: float = Field(default=0.0, ge=0)
    """The largest error that `numeric` takes as right, times the answer where that is above 1."""
    deadline_s: float = Field(default=60.0, gt=0)
    """The seconds for one batch. What is not scored by then is unscorable and leaves its group."""

    @field_validator("kind")
    @classmethod
    def _is_a_reward(cls, kind: str) -> str:
        if kind not in REWARDS and not _FUNCTION.match(kind):
            kinds = ", ".join(REWARDS)
            raise ValueError(
                f"{kind!r} is no reward; take one of {kinds}, or a function of your own as module:function"
            )
        return kind

    @field_validator("format_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); mend it or remove it") from None
        return pattern

    @model_validator(mode="after")
    def _tolerance_is_read(self) -> Self:
        if self.tolerance and self.kind != "numeric":
            raise ValueError('tolerance is read with kind = "numeric" only; set that kind or remove tolerance')
        return self


class CapabilityConfig(Section):
    """Something to get good at: data and a reward."""

    data: Data
    reward: RewardConfig
    held_out: Data | None = None
    """The data to measure on; null = the miniature's validation split, or `evaluation.questions` rows that are not
    trained on."""
