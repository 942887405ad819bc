"""What holds between the sections of a recipe. Each function gives the problems that it finds, one line each."""

import difflib
from collections.abc import Iterator, Sequence

from adapters.names import RESERVED
from trainer.recipe.capabilities import CapabilityConfig, DatasetData
from trainer.recipe.measuring import EvaluationConfig
from trainer.recipe.method import MethodConfig
from trainer.recipe.parts import EngineConfig, MediaConfig
from trainer.recipe.training import BranchConfig, BudgetConfig, LossConfig, MergeConfig, RolloutConfig


def _unknown(path: str, value: str, known: Sequence[str], noun: str) -> Iterator[str]:
    """A problem with the nearest name, unless `value` is known."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        yield f"{path}: {value!r} is no {noun}; {hint}"


def unknown_capabilities(
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
    # Nobody would train it, yet it would be loaded and measured.
    used = {capability for branch in branches.values() for capability in branch.capabilities}
    for name in known:
        if name not in used:
            yield f"capabilities.{name}: no branch uses it; add it to a branch's capabilities or remove it"


def unknown_branches(method: MethodConfig, merge: MergeConfig, branches: Sequence[str]) -> Iterator[str]:
    for number, edge in enumerate(method.edges):
        yield from _unknown(f"method.edges.{number}", edge.student, branches, "branch")
        yield from _unknown(f"method.edges.{number}", edge.teacher, branches, "branch")
    for path, name in (("method.hub", method.hub), ("method.student", method.student)):
        if name is not None:
            yield from _unknown(path, name, branches, "branch")
    for name in merge.weights:
        yield from _unknown(f"merge.weights.{name}", name, branches, "branch")


def reserved_names(branches: Sequence[str]) -> Iterator[str]:
    for name in branches:
        if name in RESERVED:
            yield f"branches.{name}: the name is reserved; take another"


def too_few_branches(method: MethodConfig, branches: Sequence[str]) -> Iterator[str]:
    if method.kind not in ("base", "rlvr") and len(branches) < 2:
        yield (
            f"method.kind: {method.kind} needs at least 2 branches, there is {len(branches)}; "
            'add a capability with its branch, or take kind = "rlvr"'
        )


def limit_problems(
    rollout: RolloutConfig, budget: BudgetConfig, engine: EngineConfig, loss: LossConfig, evaluation: EvaluationConfig
) -> Iterator[str]:
    sequence = rollout.max_prompt_tokens + rollout.max_completion_tokens
    if budget.tokens_per_micro_batch < sequence:
        yield (
            f"budget.tokens_per_micro_batch: {budget.tokens_per_micro_batch} does not hold one sequence of "
            f"max_prompt_tokens + max_completion_tokens; raise it to {sequence}, or lower those"
        )
    # The engine refuses to say more: better now than at the first OPD step.
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


def mix_problems(branches: dict[str, BranchConfig], rollout: RolloutConfig) -> Iterator[str]:
    for name, branch in branches.items():
        # Each capability has its share of a step's prompts: of fewer than there are capabilities one would get none.
        if rollout.prompts < len(branch.capabilities):
            yield (
                f"rollout.prompts: {rollout.prompts} are fewer than the {len(branch.capabilities)} capabilities of "
                f"{name}; take one for each at least"
            )


def rhythm_problems(method: MethodConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    if method.rhythm == "adaptive" and evaluation.overlap_prompts == 0:
        yield "evaluation.overlap_prompts: rhythm adaptive goes by the overlap; set it to 16 or more"


def media_problems(media: MediaConfig, capabilities: dict[str, CapabilityConfig]) -> Iterator[str]:
    for name, capability in capabilities.items():
        if not isinstance(capability.data, DatasetData):
            continue
        for kind, limit in (("images", media.max_images), ("videos", media.max_videos)):
            if getattr(capability.data.columns, kind) and limit == 0:
                yield f"capabilities.{name}.data.columns.{kind}: media.max_{kind} is 0; raise it or remove the column"
