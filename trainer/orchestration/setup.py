"""What a recipe asks for, made ready: its prompts with what judges them, the context of its steps, its learner."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer

from adapters.names import BASE
from adapters.precision import dtype_here
from clients.client import AsyncClient
from service.media import Limits
from trainer.data.held_out import training_prompts
from trainer.data.lengths import fit, pixels_of
from trainer.loop import StepContext, TrainingSet
from trainer.plan.make import make_plan
from trainer.plan.steps import Step
from trainer.recipe import Recipe
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.update.learner import Learner
from trainer.update.policy import load_policy
from trainer.update.ranks import Ranks


def capabilities_of(steps: Iterable[Step]) -> set[str]:
    """The capabilities whose prompts the steps draw."""
    names: set[str] = set()
    for step in steps:
        names.update(step.capabilities, (teacher.capability for teacher in step.teachers), step.negative)
    return names


def open_training_sets(recipe: Recipe, base: Path, names: Iterable[str]) -> dict[str, TrainingSet]:
    """Prompts that are not measured on, none of them too long; and how their answers are judged."""
    fit_prompts = fit(recipe, base)
    training_sets: dict[str, TrainingSet] = {}
    for name in sorted(names):
        capability = recipe.capabilities[name]
        reward = capability.reward
        prompts = training_prompts(name, capability, recipe.evaluation.questions, seed=recipe.seed, limits=Limits())
        rule = Rule(reward.kind, reward.format_share, reward.format_pattern, reward.tolerance, reward.folder)
        training_sets[name] = TrainingSet(fit_prompts(name, prompts), rule, reward.deadline_s)
    return training_sets


def make_context(
    recipe: Recipe, base: Path, client: AsyncClient, pool: RewardPool, training_sets: dict[str, TrainingSet]
) -> StepContext:
    return StepContext(
        client,
        pool,
        training_sets,
        decode=partial(AutoTokenizer.from_pretrained(base).decode, skip_special_tokens=True),
        seed=recipe.seed,
        sampling=recipe.rollout,
        loss=recipe.loss,
        mix=recipe.method.mix,
        negative=recipe.method.negative,
    )


def make_learner(recipe: Recipe, base: Path, digest: str, device: str | None, ranks: Ranks) -> Learner:
    policy = load_policy(
        base,
        dtype=dtype_here(recipe.base.dtype),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        pixels=pixels_of(recipe.media),
        shard=recipe.worker.shard,
    )
    if recipe.budget.gradient_checkpointing:
        policy.recompute_layers()
    # Compiled layers are a third faster on CUDA. On a CPU the miniature's layers are too small for it to pay.
    if policy.device.type == "cuda":
        policy.compile_layers()
    starts = make_plan(recipe).starts
    return Learner(
        policy,
        base=digest,
        seed=recipe.seed,
        lora=recipe.lora,
        loss=recipe.loss,
        optimiser=recipe.optimiser,
        budget=recipe.budget.tokens_per_micro_batch,
        ranks=ranks,
        seeds={start.branch: start.seed for start in starts if start.seed is not None},
        forks=[start.branch for start in starts if start.origin != BASE],
    )
