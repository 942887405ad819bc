"""A recipe: everything that decides what a run computes, as small frozen models.

A default is the setting that is vetted for the plain case, so that a recipe states only what it changes. Code takes
the section or the numbers that it needs (`recipe.rollout`, `recipe.lora.rank`), never the whole recipe. What is wrong
is said with the path of the key and the remedy.

Left out: files and overrides (`file`); where things listen and how long they wait (settings of the service and
the worker, because they do not change what is computed); LoRA dropout (always 0, log-probabilities must repeat),
rank-stabilised scaling (set `lora.alpha`) and targets beside `TARGET_MODULES` (the engine serves no others rightly).
"""

from typing import Any, Literal, Self, cast

from pydantic import Field, model_validator

from trainer.recipe import checks
from trainer.recipe.capabilities import (
    CapabilityConfig,
    Columns,
    Data,
    DatasetData,
    MiniatureData,
    ReasoningGymData,
    RewardConfig,
)
from trainer.recipe.measuring import AnswersConfig, ComparisonConfig, EvaluationConfig, EvaluationSet
from trainer.recipe.method import Edge, MethodConfig, edges
from trainer.recipe.parts import (
    TARGET_MODULES,
    BaseConfig,
    EngineConfig,
    LoraConfig,
    MediaConfig,
    Name,
    Section,
    engine_rank,
)
from trainer.recipe.training import (
    BranchConfig,
    BudgetConfig,
    LossConfig,
    MergeConfig,
    OptimiserConfig,
    RolloutConfig,
    RolloutsConfig,
    TrackingConfig,
    WorkerConfig,
)

__all__ = [
    "TARGET_MODULES",
    "AnswersConfig",
    "BaseConfig",
    "BranchConfig",
    "BudgetConfig",
    "CapabilityConfig",
    "Columns",
    "ComparisonConfig",
    "Data",
    "DatasetData",
    "Edge",
    "EngineConfig",
    "EvaluationConfig",
    "EvaluationSet",
    "LoraConfig",
    "LossConfig",
    "MediaConfig",
    "MergeConfig",
    "MethodConfig",
    "MiniatureData",
    "OptimiserConfig",
    "ReasoningGymData",
    "Recipe",
    "RewardConfig",
    "RolloutConfig",
    "RolloutsConfig",
    "TrackingConfig",
    "WorkerConfig",
    "edges",
    "engine_rank",
    "with_branches",
]


class Recipe(Section):
    """A whole run."""

    name: Name
    """The name of the run, in files and in the report."""
    seed: int = Field(default=0, ge=0)
    """The number that every stream of chance is derived from: prompts, samples, the first A. Another one is another
    run of the same recipe."""
    base: BaseConfig
    lora: LoraConfig = LoraConfig()
    engine: EngineConfig = EngineConfig()
    media: MediaConfig = MediaConfig()
    capabilities: dict[Name, CapabilityConfig] = Field(min_length=1)
    """The skills that there are to get good at, by name."""
    branches: dict[Name, BranchConfig] = Field(min_length=1)
    """The adapters that are trained, by name. Without the key there is a branch for each capability, with its name."""
    method: MethodConfig = MethodConfig()
    merge: MergeConfig = MergeConfig()
    loss: LossConfig = LossConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    budget: BudgetConfig = BudgetConfig()
    # Keys that came later are left out of files at their defaults, so that runs of before keep their names.
    worker: WorkerConfig = Field(default=WorkerConfig(), exclude_if=lambda config: config == WorkerConfig())
    rollouts: RolloutsConfig = Field(default=RolloutsConfig(), exclude_if=lambda config: config == RolloutsConfig())
    tracking: TrackingConfig = TrackingConfig()
    comparison: ComparisonConfig | None = None
    """The systems and seeds of one run, instead of `method.kind` alone: what `coevo compare` makes of a recipe."""

    @property
    def max_lora_rank(self) -> int:
        """The rank that the engine makes room for: it knows a few sizes only."""
        return engine_rank(self.lora.rank)

    @property
    def served_dtype(self) -> Literal["auto", "bfloat16", "float32"]:
        """The precision of the engine's copy: that of the trainer's where the engine has none of its own."""
        return self.base.dtype if self.engine.dtype == "base" else self.engine.dtype

    @property
    def data(self) -> dict[str, Data]:
        """All data that it names, by key: what is trained on, held out, and asked in benchmarks."""
        data: dict[str, Data] = {}
        for name, capability in self.capabilities.items():
            data[f"capabilities.{name}.data"] = capability.data
            if capability.held_out is not None:
                data[f"capabilities.{name}.held_out"] = capability.held_out
        return data | {
            f"evaluation.sets.{name}.data": benchmark.data for name, benchmark in self.evaluation.sets.items()
        }

    # Before validation, because a default of the field would not know the capabilities' names.
    @model_validator(mode="before")
    @classmethod
    def _a_branch_for_each_capability(cls, tree: object) -> object:
        return with_branches(cast(dict[str, Any], tree)) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        branches = tuple(self.branches)
        # All of them, not the first: who mends a recipe wants to mend it once.
        problems = [
            *checks.unknown_capabilities(self.branches, self.capabilities, self.evaluation),
            *checks.unknown_branches(self.method, self.merge, branches),
            *checks.reserved_names(branches),
            *checks.too_few_branches(self.method, branches),
            *checks.limit_problems(self.rollout, self.budget, self.engine, self.loss, self.evaluation),
            *checks.media_problems(self.media, self.capabilities),
            *checks.rhythm_problems(self.method, self.evaluation),
            *checks.mix_problems(self.branches, self.rollout),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def with_branches(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe as it was read; where it names no branches, with one for each capability."""
    capabilities = tree.get("capabilities")
    if "branches" in tree or not isinstance(capabilities, dict):
        return tree
    return {**tree, "branches": {name: {"capabilities": [name]} for name in cast(dict[str, Any], capabilities)}}
