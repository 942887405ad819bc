"""What the steps of a plan take at most: the engine's time, and the records of their rollouts.

Upper bounds, with the longest prompts and completions. What one request takes is in `trainer.recipe.limits`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from trainer.plan.steps import Plan, Step
from trainer.recipe import Recipe
from trainer.recipe.limits import READ_RATE, part_bytes

KEPT_BYTES = 20 * 10**9
"""What the records of a run may take where the recipe says nothing. Disks of machines that train have room for it."""


@dataclass(frozen=True, slots=True)
class KeptRollouts:
    """The records that stay."""

    steps: int | None
    """So many of each branch; None: all."""
    bytes: int
    """What they take at most."""


def engine_seconds(step: Step, recipe: Recipe) -> float:
    """At `budget.tokens_per_s`, if nothing else is asked of the engine."""
    rollout = recipe.rollout
    prompt, completion = rollout.max_prompt_tokens, rollout.max_completion_tokens
    sampled = sum(prompts * (group * completion + prompt / READ_RATE) for prompts, group in _parts(step, recipe))
    prompts, group = rollout.opd_batch
    # By student and teacher. The completions of a prompt share it in the engine's prefix cache.
    scored = 2 * len(step.teachers) * prompts * (group * completion + prompt) / READ_RATE
    return (sampled + scored) / recipe.budget.tokens_per_s


def too_long(plan: Plan, recipe: Recipe) -> str | None:
    """Why the longest step of a plan cannot be made in its time, and what to lower; None if it can."""
    budget, rollout = recipe.budget, recipe.rollout
    step = max(plan.steps, key=lambda step: engine_seconds(step, recipe), default=None)
    if step is None or (hours := engine_seconds(step, recipe) / 3600) <= budget.step_hours:
        return None
    # What a person can change: tokens of completions, not the prompts that are read beside them.
    completions = sum(prompts * group for prompts, group in _parts(step, recipe))
    tokens = completions * rollout.max_completion_tokens
    enough = budget.tokens_per_s * hours / budget.step_hours
    return (
        f"{step.makes} samples up to {tokens:,} tokens, which with prompts and scores is {hours:,.3g} h at "
        f"budget.tokens_per_s = {budget.tokens_per_s:g}, and budget.step_hours is {budget.step_hours:g}: that needs "
        f"{enough:,.0f} tokens a second; take a faster engine, or lower rollout.prompts or max_completion_tokens"
    )


def record_bytes(step: Step, recipe: Recipe) -> int:
    """The most that the record of a step takes."""
    return sum(part_bytes(recipe, prompts * group) for prompts, group in _parts(step, recipe))


def kept_rollouts(plan: Plan, recipe: Recipe) -> KeptRollouts:
    """The records that a run keeps, by `rollouts.keep` or by their size."""
    by_branch: dict[str, list[int]] = {}
    for step in plan.steps:
        by_branch.setdefault(step.branch, []).append(record_bytes(step, recipe))
    # Of each branch the n largest, for every n: which ones stay in the end is not asked here.
    sums = [list(accumulate(sorted(sizes, reverse=True), initial=0)) for sizes in by_branch.values()]
    most = max(map(len, by_branch.values()), default=0)

    def bytes_of(count: int) -> int:
        return sum(of_branch[min(count, len(of_branch) - 1)] for of_branch in sums)

    # From the most down: bytes grow with the count, so the first that fits is the largest.
    keep = recipe.rollouts.keep
    if keep is None:
        keep = next((count for count in range(most, 1, -1) if bytes_of(count) <= KEPT_BYTES), 1)
    if keep == "all" or (keep != "last" and keep >= most):
        return KeptRollouts(None, bytes_of(most))
    count = 1 if keep == "last" else keep
    return KeptRollouts(count, bytes_of(count))


def _parts(step: Step, recipe: Recipe) -> Iterator[tuple[int, int]]:
    """Prompts, and completions of each, of every term of the loss."""
    rollout = recipe.rollout
    if step.capabilities:
        yield rollout.prompts, rollout.group_size
    yield from [rollout.opd_batch] * (len(step.teachers) + len(step.negative))
