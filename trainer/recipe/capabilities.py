"""The sections of a recipe that say what there is to get good at: data and rewards."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.recipe.parts import Section

REWARDS = ("math", "choice", "numeric", "exact", "reasoning-gym")
"""The kinds of `trainer.rewards`. Listed here too, because a recipe is read without importing what runs it."""

# Its form only: to import it would run a user's code wherever a recipe is read. `RewardPool.check` does, in a child.
_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def _unset() -> Any:
    """The default of a key that came later. Unset it is left out where recipes are written: the name of a run is a hash
    of its recipe, and runs of before must keep theirs."""
    return Field(default=None, exclude_if=lambda value: value is None)


class MiniatureData(Section):
    """Questions that are made up, from the run's seed: the miniature's, or the real base's in words."""

    type: Literal["miniature", "real"]
    name: str
    """The capability: text, image, video; with a miniature that has learnt them shapes, order or one of your own."""
    size: int = Field(default=2000, ge=1)
    """The number of different prompts. A run that draws more than there are begins again in another order."""
    level: Literal[1, 2] | None = None
    """The steps of arithmetic in a question; null = both, by turns."""
    split: Literal["train", "validation", "test"] = "train"
    """The split that questions are taken from. Splits share no question."""


class Columns(Section):
    """The columns of a data set. A mark such as `<image>` in the prompt says where the next image goes."""

    prompt: str = "prompt"
    """The column of the question: a text, or chat messages in OpenAI's shape. A dot reaches into a column of objects.
    An assistant's message at the end is what the model is to say: it is left out."""
    answer: str = "answer"
    """The column of the right answer, bare or where `answer_pattern` finds it. The same column of chat messages as
    `prompt`: the answer is the assistant's message at their end."""
    images: str | None = None
    """The column of images: one or a list, as bytes or as paths under `media_root`; null = none."""
    videos: str | None = None
    """The column of videos: one or a list, as bytes or paths, or a list of images as frames; null = none."""
    options: str | tuple[str, ...] | None = _unset()
    """The options of multiple choice: a column that holds a list, or a column for each, such as ["A", "B", "C", "D"];
    null = none. They stand behind the question with a letter each, and the answer becomes a letter, which
    `reward.kind = "choice"` judges."""


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
    answer_pattern: str | None = _unset()
    """The pattern with one group that finds the answer in its cell, the last match counts: "#### (.+)" in GSM8K's
    solutions; null = the cell is the answer."""
    answer_as: Literal["letter", "index", "number", "text"] | None = _unset()
    """The form of the answer beside `columns.options`: an index counts from 0, a number from 1; null = a letter, an
    option's text, or an integer that counts from 0, where only one of them fits."""
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

    @field_validator("answer_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None and (groups := _compiled(pattern).groups) != 1:
            raise ValueError(f"{pattern!r} has {groups} groups; put (...) around the answer, and (?:...) elsewhere")
        return pattern

    @model_validator(mode="after")
    def _answer_as_is_read(self) -> Self:
        if self.answer_as and not self.columns.options:
            raise ValueError("answer_as is read with columns.options only; set those or remove answer_as")
        return self


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}); mend it or remove it") from None


class ReasoningGymData(Section):
    """Questions that a task of reasoning-gym makes up; the reward is `reasoning-gym`, the task's own score."""

    type: Literal["reasoning-gym"]
    name: str
    """The task, such as chain_sum or countdown."""
    size: int = Field(default=2000, ge=1)
    """The number of different prompts; a task with fewer gives all of them."""
    seed: int | None = Field(default=None, ge=0)
    """The seed of the questions; null = the run's, so that each run has questions of its own."""
    config: dict[str, Any] = Field(default={})
    """The settings of the task, such as min_terms; those left out have the task's own defaults."""
    split: Literal["train", "validation"] = "train"
    """The split that questions are taken from. Splits share no question, whatever their seeds."""
    system: str | None = None
    """The system message before each prompt; null = none."""
    suffix: str = ""
    """The text added to the end of each prompt, such as how to give the answer."""


Data = Annotated[MiniatureData | DatasetData | ReasoningGymData, Field(discriminator="type")]


class RewardConfig(Section):
    """The check of an answer."""

    kind: str
    """The check: math, choice, numeric, exact, reasoning-gym for its tasks, or a function of your own as
    `module:function`."""
    folder: str | None = _unset()
    """The folder that the function's module is imported from. null = the recipe's folder where the module lies in it,
    else wherever Python finds it."""
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
        _compiled(pattern or "")
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
    """The data to measure on; null = the validation split of generated questions, or `evaluation.questions` rows that
    are not trained on."""

    @model_validator(mode="after")
    def _tasks_score_themselves(self) -> Self:
        is_task = any(isinstance(data, ReasoningGymData) for data in (self.data, self.held_out))
        if is_task and self.reward.kind != "reasoning-gym":
            raise ValueError(
                'tasks of reasoning-gym are scored by themselves; set reward.kind = "reasoning-gym", or take other data'
            )
        return self
