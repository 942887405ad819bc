"""A recipe: everything that decides what a run computes, as small frozen models.

A default is the setting that is vetted for the plain case, so that a recipe states only what it changes. Code takes
the section or the numbers that it needs (`recipe.rollout`, `recipe.lora.rank`), never the whole recipe. What is wrong
is said with the path of the key and the remedy.

Left out: files and overrides (`file`); where things listen and how long they wait (settings of the service and
the worker, because they do not change what is computed); LoRA dropout (always 0, log-probabilities must repeat),
rank-stabilised scaling (set `lora.alpha`) and the choice of target modules (`TARGET_MODULES`, the engine serves no
others rightly).
"""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from pydantic import Field, model_validator

from adapters.names import RESERVED
from trainer.recipe.measuring import AnswersConfig, ComparisonConfig, EvaluationConfig, EvaluationSet
from trainer.recipe.method import Edge, MethodConfig, edges
from trainer.recipe.parts import (
    TARGET_MODULES,
    BaseConfig,
    BranchConfig,
    BudgetConfig,
    CapabilityConfig,
    Columns,
    DatasetData,
    EngineConfig,
    LoraConfig,
    LossConfig,
    MediaConfig,
    MergeConfig,
    MiniatureData,
    Name,
    OptimiserConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    TrackingConfig,
    engine_rank,
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
    "Recipe",
    "RewardConfig",
    "RolloutConfig",
    "TrackingConfig",
    "edges",
    "engine_rank",
    "with_branches",
]


class Recipe(Section):
    """A whole run."""

    name: Name
    """Of the run, in files and in the report."""
    seed: int = Field(default=0, ge=0)
    """Decides prompts, samples and the first A; every stream of chance is derived from it."""
    base: BaseConfig
    lora: LoraConfig = LoraConfig()
    engine: EngineConfig = EngineConfig()
    media: MediaConfig = MediaConfig()
    capabilities: dict[Name, CapabilityConfig] = Field(min_length=1)
    """What there is to get good at, by name."""
    branches: dict[Name, BranchConfig] = Field(min_length=1)
    """Left out: one for each capability, with its name."""
    method: MethodConfig = MethodConfig()
    merge: MergeConfig = MergeConfig()
    loss: LossConfig = LossConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    budget: BudgetConfig = BudgetConfig()
    tracking: TrackingConfig = TrackingConfig()
    comparison: ComparisonConfig | None = None
    """Many systems and seeds in one run, instead of `method.kind` alone: what `coevo compare` makes of a recipe."""

    @property
    def max_lora_rank(self) -> int:
        """The engine's: it knows a few sizes only."""
        return engine_rank(self.lora.rank)

    @model_validator(mode="before")
    @classmethod
    def _a_branch_for_each_capability(cls, tree: object) -> object:
        return with_branches(cast(dict[str, Any], tree)) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *_unknown_capabilities(self.branches, self.capabilities, self.evaluation),
            *_unknown_branches(self.method, self.merge, tuple(self.branches)),
            *_reserved_names(tuple(self.branches)),
            *_too_few_branches(self.method, tuple(self.branches)),
            *_limit_problems(self.rollout, self.budget, self.engine, self.loss, self.evaluation),
            *_media_problems(self.media, self.capabilities),
            *_rhythm_problems(self.method, self.evaluation),
            *_mix_problems(self.branches, self.rollout),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def with_branches(tree: dict[str, Any]) -> dict[str, Any]:
    """A recipe as read; where it names no branches, with one for each capability."""
    capabilities = tree.get("capabilities")
    if "branches" in tree or not isinstance(capabilities, dict):
        return tree
    return {**tree, "branches": {name: {"capabilities": [name]} for name in cast(dict[str, Any], capabilities)}}


def _unknown(path: str, value: str, known: Sequence[str], what: str) -> Iterator[str]:
    """Nothing if `value` is known; else one message with the nearest name."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        yield f"{path}: {value!r} is no {what}; {hint}"


def _unknown_capabilities(
    branches: dict[str, BranchConfig], capabilities: dict[str, CapabilityConfig], evaluation: EvaluationConfig
) -> Iterator[str]:
    known = tuple(capabilities)
    for name, branch in branches.items():
        for capability in branch.capabilities:
            yield from _unknown(f"branches.{name}.capabilities", capability, known, "capability")
        if len(set(branch.capabilities)) < len(branch.capabilities):
            yield f"branches.{name}.capabilities: one is there twice; name each once, method.mix sets proportions"
    for name, benchmark in evaluation.sets.items():
        yield from _unknown(f"evaluation.sets.{name}.capability", benchmark.capability, known, "capability")
    used = {capability for branch in branches.values() for capability in branch.capabilities}
    for name in known:
        if name not in used:
            yield f"capabilities.{name}: no branch uses it; add it to a branch's capabilities or remove it"


def _unknown_branches(method: MethodConfig, merge: MergeConfig, branches: Sequence[str]) -> Iterator[str]:
    for number, edge in enumerate(method.edges):
        yield from _unknown(f"method.edges.{number}", edge.student, branches, "branch")
        yield from _unknown(f"method.edges.{number}", edge.teacher, branches, "branch")
    for path, name in (("method.hub", method.hub), ("method.student", method.student)):
        if name is not None:
            yield from _unknown(path, name, branches, "branch")
    for name in merge.weights:
        yield from _unknown(f"merge.weights.{name}", name, branches, "branch")


def _reserved_names(branches: Sequence[str]) -> Iterator[str]:
    for name in branches:
        if name in RESERVED:
            yield f"branches.{name}: the name is reserved; take another"


def _too_few_branches(method: MethodConfig, branches: Sequence[str]) -> Iterator[str]:
    if method.kind not in ("base", "rlvr") and len(branches) < 2:
        yield (
            f"method.kind: {method.kind} needs at least 2 branches, there is {len(branches)}; "
            'add a capability with its branch, or take kind = "rlvr"'
        )


def _limit_problems(
    rollout: RolloutConfig, budget: BudgetConfig, engine: EngineConfig, loss: LossConfig, evaluation: EvaluationConfig
) -> Iterator[str]:
    sequence = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if budget.tokens_per_micro_batch < sequence:
        yield (
            f"budget.tokens_per_micro_batch: {budget.tokens_per_micro_batch} does not hold one sequence of "
            f"max_prompt_tokens + max_completion_tokens; raise it to {sequence}, or lower those"
        )
    for path, top_k in (
        ("loss.teacher_top_k", loss.teacher_top_k),
        ("evaluation.overlap_top_k", evaluation.overlap_top_k),
    ):
        if top_k > engine.top_k:
            yield f"{path}: {top_k} is above engine.top_k = {engine.top_k}; raise engine.top_k to {top_k}"
    if evaluation.overlap_prompts > evaluation.questions:
        yield (
            f"evaluation.overlap_prompts: {evaluation.overlap_prompts} of {evaluation.questions} held-out questions; "
            f"raise evaluation.questions to {evaluation.overlap_prompts}"
        )


def _mix_problems(branches: dict[str, BranchConfig], rollout: RolloutConfig) -> Iterator[str]:
    for name, branch in branches.items():
        if rollout.prompts < len(branch.capabilities):
            yield (
                f"rollout.prompts: {rollout.prompts} are fewer than the {len(branch.capabilities)} capabilities of "
                f"{name}; take one for each at least"
            )


def _rhythm_problems(method: MethodConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    if method.rhythm == "adaptive" and evaluation.overlap_prompts == 0:
        yield "evaluation.overlap_prompts: rhythm adaptive goes by the overlap; set it to 16 or more"


def _media_problems(media: MediaConfig, capabilities: dict[str, CapabilityConfig]) -> Iterator[str]:
    for name, capability in capabilities.items():
        if not isinstance(capability.data, DatasetData):
            continue
        for kind, limit in (("images", media.max_images), ("videos", media.max_videos)):
            if getattr(capability.data.columns, kind) and limit == 0:
                yield f"capabilities.{name}.data.columns.{kind}: media.max_{kind} is 0; raise it or remove the column"
