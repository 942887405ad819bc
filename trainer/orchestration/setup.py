"""What a recipe asks for, made ready: its prompts with what judges them, the arena of its steps, its learner.

Left out: everything that moves (`worker`), and the engine's side of a recipe (the service's settings).
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer

from clients.client import AsyncClient
from service.media import Limits
from trainer.data.held_out import trained
from trainer.data.lengths import fit, pixels_of
from trainer.loop import StepContext, TrainingSet
from trainer.plan.make import make_plan
from trainer.plan.steps import Step
from trainer.recipe import Recipe, RewardConfig
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.update.learner import Learner
from trainer.update.policy import load_policy
from trainer.update.ranks import Ranks


def capabilities_of(steps: Iterable[Step]) -> set[str]:
    """Those whose prompts the steps draw."""
    return {
        name
        for step in steps
        for name in (*step.capabilities, *(teacher.capability for teacher in step.teachers), *step.negative)
    }


def open_training_sets(recipe: Recipe, base: Path, names: Iterable[str]) -> dict[str, TrainingSet]:
    """Prompts that are not measured on, none of them too long; and how their answers are judged."""
    fitting = fit(recipe, base)

    def opened(name: str) -> TrainingSet:
        capability = recipe.capabilities[name]
        prompts = trained(name, capability, recipe.evaluation.questions, seed=recipe.seed, limits=Limits())
        return TrainingSet(fitting(name, prompts), rule_of(capability.reward), capability.reward.deadline_s)

    return {name: opened(name) for name in sorted(names)}


def rule_of(reward: RewardConfig) -> Rule:
    return Rule(reward.kind, reward.format_share, reward.format_pattern, reward.tolerance)


def make_context(
    recipe: Recipe, base: Path, client: AsyncClient, pool: RewardPool, capabilities: dict[str, TrainingSet]
) -> StepContext:
    decode = partial(AutoTokenizer.from_pretrained(base).decode, skip_special_tokens=True)
    return StepContext(
        client,
        pool,
        capabilities,
        decode,
        recipe.seed,
        recipe.rollout,
        recipe.loss,
        recipe.method.mix,
        recipe.method.negative,
    )


def make_learner(recipe: Recipe, base: Path, digest: str, device: str | None, ranks: Ranks) -> Learner:
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_policy(base, dtype=recipe.base.dtype, device=place, pixels=pixels_of(recipe.media))
    if recipe.budget.gradient_checkpointing:
        policy.recompute_layers()
    if policy.device.type == "cuda":
        policy.compile_layers()
    return Learner(
        policy,
        base=digest,
        seed=recipe.seed,
        lora=recipe.lora,
        loss=recipe.loss,
        optimiser=recipe.optimiser,
        budget=recipe.budget.tokens_per_micro_batch,
        ranks=ranks,
        seeds={start.branch: start.seed for start in make_plan(recipe).starts if start.seed is not None},
    )
