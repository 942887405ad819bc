"""The sections of a recipe that say what is measured: held-out questions and benchmarks, and systems side by side."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from trainer.recipe.capabilities import Data, RewardConfig
from trainer.recipe.parts import Name, Section


class PrimaryAnswers(Section):
    """The sampled answers whose mean is the primary metric: what systems are compared and scales are chosen by."""

    samples: int = Field(default=8, ge=1)
    """The number of them for each question."""
    temperature: float = Field(default=0.7, gt=0, le=2)
    """Their temperature. 0.7 is how the paper's group validates: less noise than at 1, and more of the model than its
    likeliest answer alone."""
    top_p: float = Field(default=0.8, gt=0, le=1)
    """The probability that their tokens are taken from."""


class AnswersConfig(Section):
    """The answers that are given to each question when measuring."""

    greedy: bool = True
    """The greedy answer: at each token the likeliest. false = sampled answers only."""
    samples: int = Field(default=0, ge=0)
    """The number of sampled answers of each question; their mean is avg@n. 0 = none."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """The temperature of the sampled answers. 1 is how training samples; a lower one is nearer to the greedy
    answer."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The probability that tokens of the sampled answers are taken from."""
    primary: PrimaryAnswers | None = Field(default=None, exclude_if=lambda value: value is None)
    """The answers of the primary metric, beside the others; `{}` is avg@8 at temperature 0.7 and top_p 0.8. null =
    none."""

    @model_validator(mode="after")
    def _answers_at_all(self) -> Self:
        if not self.greedy and self.samples == 0 and self.primary is None:
            raise ValueError("no answer would be given; set greedy = true or samples = 4")
        return self


class EvaluationSet(Section):
    """A benchmark."""

    capability: str
    """The capability in whose average it counts."""
    data: Data
    reward: RewardConfig
    answers: AnswersConfig = AnswersConfig()


class EvaluationConfig(Section):
    """The measurements beside what training itself shows."""

    every: int = Field(default=0, ge=0)
    """The cycles between measurements of accuracy, or segments of that length where there are none; 0 = only at the
    end, because each takes its time."""
    questions: int = Field(default=256, ge=1)
    """The number of held-out questions of each capability. More narrow the intervals, and leave fewer rows to train
    on."""
    answers: AnswersConfig = AnswersConfig(samples=4)
    """The answers to those questions: greedy and sampled."""
    overlap_prompts: int = Field(default=64, ge=0)
    """The number of those questions that overlap and KL of the branches are measured on, at the end of each phase; 0 =
    never."""
    overlap_top_k: int = Field(default=10, ge=1)
    """The likeliest tokens of each branch that overlap and shared probability are made of. What they leave over bounds
    the error of the second."""
    sets: dict[Name, EvaluationSet] = Field(default={})
    """The benchmarks, by name."""


Papers = Literal[
    "mixed2", "static_v2t", "static_t2v", "copd2", "no_image_edge", "no_text_edge", "mixed3", "mopd", "copd3",
    "no_teachers",
]  # fmt: skip
Compared = Literal[
    Papers, "pairwise", "mopd-equal", "mixed3-tokens", "mopd-tokens", "merge3-tokens", "pilot", "ages", "sweep"
]


class ComparisonConfig(Section):
    """Systems side by side (`trainer.plan.comparison` says what each is), beside the experts."""

    systems: tuple[Compared, ...] = get_args(Papers)
    """The systems, beside the experts and their merges, which all of them are compared with."""
    seeds: int = Field(default=5, ge=1)
    """The number of seeds; each trains everything. More narrow the intervals."""
    first_seed: int = Field(default=0, ge=0)
    """The lowest seed; the others follow."""
    scales: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """The scales that are tried for each system, merged or one branch; the one that answers validation questions best
    is taken (the split of that name, of generated questions). Empty = merges have `merge.scale`, single branches 1."""
    rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(), exclude_if=lambda rates: rates == ())
    """The learning rates that every system is tried with on `tuning_seed`; each has the one that answers validation
    questions best. Every rate trains that seed's systems again. Fewer than two = all have `optimiser.lr`."""
    tuning_seed: int = Field(default=1000, ge=0, exclude_if=lambda seed: seed == 1000)
    """The seed on which learning rates are tried. None that is reported: there its luck would choose."""
    validation: int | None = Field(default=None, ge=1, exclude_if=lambda count: count is None)
    """The number of validation questions of each capability; null = `evaluation.questions`."""

    @model_validator(mode="after")
    def _rates_can_be_chosen(self) -> Self:
        if self.rates and not self.scales:
            raise ValueError("rates are judged at each system's best scale; set scales = [1.0], or more of them")
        if self.rates and (alone := {"pilot", "ages", "sweep"} & set(self.systems)):
            raise ValueError(f"{', '.join(sorted(alone))} can have no rate of its own; leave it out, or rates")
        if self.rates and self.first_seed <= self.tuning_seed < self.first_seed + self.seeds:
            raise ValueError(f"tuning_seed {self.tuning_seed} is one of the seeds that are reported; take another")
        return self
