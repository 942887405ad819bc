"""The sections of a recipe that say what is measured: held-out questions and benchmarks, and systems side by side.

Left out: how it is done (`trainer.evaluation.exams`, `trainer.compare`).
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from trainer.recipe.parts import Data, Name, RewardConfig, Section


class AnswersConfig(Section):
    """How a question is answered when measuring."""

    greedy: bool = True
    """The one most likely answer."""
    samples: int = Field(default=0, ge=0)
    """Sampled answers of each question; their mean is avg@n."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Of the sampled answers."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Of the sampled answers."""

    @model_validator(mode="after")
    def _answers_at_all(self) -> Self:
        if not self.greedy and self.samples == 0:
            raise ValueError("no answer would be given; set greedy = true or samples = 4")
        return self


class EvaluationSet(Section):
    """A benchmark."""

    capability: str
    """In whose average it counts."""
    data: Data
    reward: RewardConfig
    answers: AnswersConfig = AnswersConfig()


class EvaluationConfig(Section):
    """What is measured, beside what training itself shows."""

    every: int = Field(default=0, ge=0)
    """Cycles between measurements of accuracy, or segments of that length where there are none; 0 = only at the end."""
    questions: int = Field(default=256, ge=1)
    """Held-out questions of each capability."""
    answers: AnswersConfig = AnswersConfig(samples=4)
    """How those are answered."""
    overlap_prompts: int = Field(default=64, ge=0)
    """How many of those overlap and KL of the branches are measured on, at the end of each phase; 0 = never."""
    overlap_top_k: int = Field(default=10, ge=1)
    """Tokens in the overlap of two branches."""
    sets: dict[Name, EvaluationSet] = Field(default={})
    """Benchmarks, by name."""


Papers = Literal[
    "mixed2", "static_v2t", "static_t2v", "copd2", "no_image_edge", "no_text_edge", "mixed3", "mopd", "copd3",
    "no_teachers",
]  # fmt: skip
Compared = Literal[Papers, "pairwise", "mopd-equal", "pilot", "sweep"]


class ComparisonConfig(Section):
    """Systems side by side (`trainer.plan.comparison` says what each is), beside the experts."""

    systems: tuple[Compared, ...] = get_args(Papers)
    """Beside the experts and their merges, which every one of them is compared with."""
    seeds: int = Field(default=5, ge=1)
    """How many; each trains everything."""
    first_seed: int = Field(default=0, ge=0)
    """The others follow."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Of each merge the one that answers validation questions best: the miniature's own split of that name. None: all
    have `merge.scale`."""
