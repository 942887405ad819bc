"""The method, from top to bottom: one training step of one branch.

    prompts -> completions -> rewards and teacher scores -> advantages -> loss terms -> update -> new revision

CoPD alternates two phases. In phase I (`rlvr`) a branch learns from rewards on its own data: GRPO, one loss term. In
phase II (`opd`) the branches teach each other as well: for each teacher one more term, made of the student's own
completions of that teacher's prompts, scored by both. So a phase is nothing but which terms a step has, and the update
is the same for both. `plan.systems` says which steps there are.

A step names every revision that it reads, and every draw of chance follows from (seed, branch, step). So any worker can
make a step again with the same draws. Its numbers are equal to rounding, for the engine's depend on the batch that they
are computed in; from recorded rollouts (`orchestration.replay`) they are equal bit by bit.

Axes: G completions of a prompt, C tokens of a completion.
"""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError
from adapters.manifest import Manifest
from clients.client import AsyncClient
from service.tracing import span
from trainer.data.prompts import Prompts, draw
from trainer.parts import Completion, Floats, LossTerm, Prompt, Rollout, TopK, loss_term
from trainer.plan.steps import Step, Teacher
from trainer.queue.client import Lease
from trainer.recipe import LossConfig, RolloutConfig
from trainer.recipe.method import Mix, Negative
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.advantages import group_advantages, negative_advantages, teacher_advantages
from trainer.rollout.metrics import engine_noise, rollout_metrics
from trainer.rollout.sample import judge, sample, score, seeds
from trainer.update.learner import Learner
from trainer.update.update import Update

NATIVE = "native"
"""The name of the term that rewards make, in metrics and records."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The prompts of a capability, and what judges the answers."""

    prompts: Prompts
    rule: Rule
    deadline_s: float


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a step needs beside itself: where branches answer and are judged, and the numbers of the recipe."""

    client: AsyncClient
    pool: RewardPool
    training_sets: Mapping[str, TrainingSet]
    decode: Callable[[Sequence[int]], str]
    seed: int
    sampling: RolloutConfig
    loss: LossConfig
    mix: Mix = "equal"
    negative: Negative = field(default_factory=Negative)

    def seed_of(self, step: Step) -> int:
        """The run's, but for branches of a comparison, which bring their own."""
        return self.seed if step.seed is None else step.seed


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step learns from."""

    terms: tuple[LossTerm, ...]
    rollouts: Mapping[str, Sequence[Rollout]]
    """All rollouts of each term, with those that teach nothing."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """A step that is over: its revision is published."""

    manifest: Manifest
    batch: Batch
    update: Update


Gather = Callable[[Step, StepContext], Coroutine[Any, Any, Batch]]
Slot = Callable[[], AbstractAsyncContextManager[object]]


async def gather_batch(step: Step, context: StepContext) -> Batch:
    """All terms of a step at once: they need nothing of each other, and the engine is fuller with all of them."""
    # In this order, which is that of the gradients' sum: a sum in another order rounds to other weights.
    terms = await asyncio.gather(
        *([rl_term(step, context)] if step.capabilities else []),
        *(distillation_term(step, teacher, context) for teacher in step.teachers),
        *(control_term(step, capability, context) for capability in step.negative),
    )
    return Batch(
        terms=tuple(loss_term(name, rollouts) for name, rollouts, _ in terms),
        rollouts={name: rollouts for name, rollouts, _ in terms},
        metrics={metric: value for _, _, metrics in terms for metric, value in metrics.items()},
    )


async def train_step(
    step: Step,
    context: StepContext,
    learner: Learner,
    *,
    gather: Gather = gather_batch,
    slot: Slot = nullcontext,
    lease: Lease | None = None,
) -> StepResult:
    """One step of one branch. Leases, timings, faults and cancellation are hooks around it."""
    # 1. The network: sample, judge, score. It needs no weights, so another branch may learn.
    batch = await gather(step, context)
    # 2. The weights: one update for all terms. Branches take turns, they share one base.
    async with slot():
        await learner.prepare(step.parent, context.client)
        update = await asyncio.to_thread(learner.learn, step.branch, batch.terms)
    # 3. The new revision: the service renames a folder, and that is the commit.
    manifest = await publish(step, context, learner, batch, update, lease)
    return StepResult(manifest, batch, update)


# ---- the terms of the loss ----

Term = tuple[str, list[Rollout], dict[str, float]]
"""A term's name, its rollouts with advantages, its metrics."""


async def rl_term(step: Step, context: StepContext) -> Term:
    """GRPO on the branch's own capabilities: a completion is compared with the others of its prompt."""
    shares = prompts_by_capability(step, context)
    rollouts_by_capability = await asyncio.gather(
        *(
            rollouts_of(step, context, capability, NATIVE, share, context.sampling.group_size)
            for capability, share in zip(step.capabilities, shares, strict=True)
            if share  # a mix in proportion can leave a small capability out of a small batch
        )
    )
    rollouts = [rollout for rollouts in rollouts_by_capability for rollout in rollouts]
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    # A few completions that nobody can score are dropped below; when it is all of them, the reward itself is broken.
    if all(completion.reward is None for completion in completions):
        raise UserError(
            f"none of {len(completions)} completions could be scored, the first because {completions[0].why}"
        )

    trained: list[Rollout] = []
    for rollout in rollouts:
        # A_i = (r_i - mean_G r) / (std_G r + 1e-4), the same for every token of completion i
        advantages_G = group_advantages([completion.reward for completion in rollout.completions], std=context.loss.std)
        trained.append(
            rollout.only(
                with_advantage(completion, advantage)
                for completion, advantage in zip(rollout.completions, advantages_G, strict=True)
            )
        )
    return NATIVE, trained, rollout_metrics(NATIVE, rollouts)


def with_advantage(completion: Completion, advantage: float | None) -> Completion:
    """The same advantage for every token. None where there was no reward: the completion left its group."""
    if advantage is None:
        return completion
    return replace(completion, advantages_C=np.full(len(completion.ids_C), advantage, np.float32))


async def distillation_term(step: Step, teacher: Teacher, context: StepContext) -> Term:
    """On-policy distillation: the student answers the teacher's prompts, and both score what it said.

    The samples are the student's, so the expected gradient is that of the reverse KL, KL(student || teacher).
    """
    name, loss = teacher.name, context.loss
    prompts, group_size = context.sampling.opd_batch
    rollouts = await rollouts_of(step, context, teacher.capability, name, prompts, group_size)
    top_k = loss.teacher_top_k if loss.teacher_signal == "top-k" else 0
    # Both adapters in one request: the same engine, batch and rounding, so that a delta of 0 means agreement.
    student_scores, teacher_scores = await score(
        context.client, [str(step.parent), str(teacher.ref)], rollouts, top_k=top_k
    )

    trained: list[Rollout] = []
    deltas: list[Floats] = []
    for rollout, student_of_rollout, teacher_of_rollout in zip(rollouts, student_scores, teacher_scores, strict=True):
        completions: list[Completion] = []
        for completion, student, taught in zip(
            rollout.completions, student_of_rollout, teacher_of_rollout, strict=True
        ):
            # delta_t = log p_teacher(y_t | x, y_<t) - log p_student(y_t | x, y_<t)
            delta_C = taught.logprobs_C - student.logprobs_C
            if top_k:
                # The divergence over the teacher's k likeliest tokens is computed in the update, with a gradient
                # through every one of them; the sampled token alone says nothing more.
                advantages_C = np.zeros_like(student.logprobs_C)
                bins = TopK(taught.top_ids_Ck, taught.top_logprobs_Ck, teacher.beta)
            else:
                # A_t = beta * clamp(delta_t, -c, c)
                advantages_C = teacher_advantages(delta_C, beta=teacher.beta, clamp=loss.delta_clamp)
                bins = None
            completions.append(replace(completion, advantages_C=advantages_C, delta_C=delta_C, top_k=bins))
            deltas.append(delta_C)
        trained.append(rollout.only(completions))

    delta_N = np.concatenate(deltas)
    metrics = rollout_metrics(name, rollouts) | {
        f"{name}/delta": float(delta_N.mean()),
        f"{name}/delta_abs": float(np.abs(delta_N).mean()),
        f"{name}/clamped": float((np.abs(delta_N) > loss.delta_clamp).mean()),
        # One model said both, when it sampled and when it was scored: what batching and rounding alone amount to, the
        # scale that a delta is read against.
        f"{name}/self_delta": engine_noise(rollouts, student_scores),
    }
    # How much better the teacher did at these questions in the step that made it: what there is to learn from it.
    if (teacher_reward := await reward_of(teacher, context.client)) is not None:
        metrics[f"{name}/gap"] = teacher_reward - metrics[f"{name}/reward"]
    return name, trained, metrics


async def reward_of(teacher: Teacher, client: AsyncClient) -> float | None:
    """The mean reward in the teacher's own last step; None where it was not trained with rewards."""
    assert teacher.ref.revision is not None
    manifest = await client.describe(teacher.ref.branch, teacher.ref.revision)
    metrics = manifest.meta.get("metrics")
    reward = metrics.get(f"{NATIVE}/reward") if isinstance(metrics, dict) else None
    return None if reward is None else float(reward)  # type: ignore[arg-type]


async def control_term(step: Step, capability: str, context: StepContext) -> Term:
    """The control of the paper's ablation: no teacher at all, the student's own unlikely tokens are pushed down."""
    name, settings = f"negative-{capability}", context.negative
    rollouts = await rollouts_of(step, context, capability, name, *context.sampling.opd_batch)
    trained = [
        rollout.only(
            replace(
                completion,
                # A_t = -c where p_student(y_t) < p, else 0
                advantages_C=negative_advantages(
                    completion.logprobs_C, advantage=settings.advantage, probability=settings.probability
                ),
            )
            for completion in rollout.completions
        )
        for rollout in rollouts
    ]
    return name, trained, rollout_metrics(name, rollouts)


# ---- prompts and completions ----


async def rollouts_of(
    step: Step, context: StepContext, capability: str, term: str, count: int, group_size: int
) -> list[Rollout]:
    """Prompts of a capability, answered by the branch as it was before the step, and judged."""
    training_set = context.training_sets[capability]
    # In threads, because reading a prompt may decode media and judging waits for other processes.
    prompts = await asyncio.to_thread(prompts_of, step, context, capability, term, count)
    rollouts = await sample(
        context.client,
        str(step.parent),  # a revision: by the branch's name alone the service would answer with its newest
        prompts,
        n=group_size,
        max_tokens=context.sampling.max_completion_tokens,
        # The step's number is in the seeds: a prompt that comes again is answered anew.
        seeds=seeds(count, context.seed_of(step), stream_of(step, term, capability), step.number),
        decode=context.decode,
        temperature=context.sampling.temperature if step.temperature is None else step.temperature,
        top_p=context.sampling.top_p,
        logprobs=True,  # what the engine itself said, for the importance weight between engine and trainer
    )
    return await asyncio.to_thread(judge, rollouts, context.pool, training_set.rule, training_set.deadline_s)


def prompts_of(step: Step, context: StepContext, capability: str, term: str, count: int) -> list[Prompt]:
    """The prompts that a step draws; `--replay` draws them again."""
    prompts = context.training_sets[capability].prompts
    indices = draw(
        prompts,
        seed=context.seed_of(step),
        branch=stream_of(step, term, capability),
        step=step.number - 1,  # steps are numbered by the revision they make, from 1; draws count from 0
        count=count,
    )
    return [prompts[index] for index in indices]


def stream_of(step: Step, term: str, capability: str) -> str:
    """The name of a stream of chance: no two terms of a run draw alike."""
    return f"{step.stream or step.branch} {term} {capability}"


def prompts_by_capability(step: Step, context: StepContext) -> list[int]:
    """How many prompts each of the branch's capabilities gets: equally many, or in proportion to its data."""
    sizes = [
        len(context.training_sets[capability].prompts) if context.mix == "proportional" else 1
        for capability in step.capabilities
    ]
    # Largest remainders: floors first, then one more for the largest fractions, the first of equals first.
    count, total = context.sampling.prompts, sum(sizes)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -(count * sizes[index] % total))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    return shares


# ---- the new revision ----


async def publish(
    step: Step, context: StepContext, learner: Learner, batch: Batch, update: Update, lease: Lease | None = None
) -> Manifest:
    """The adapter with its moments and what is known of the step. A skipped step publishes its parent's weights."""
    meta = {
        "seed": context.seed_of(step),
        # JSON has no NaN: a mean over nothing, such as a reward where nobody was judged, is left out.
        "metrics": {name: value for name, value in {**batch.metrics, **update.metrics}.items() if np.isfinite(value)},
        # The coordinator never retires the end of a phase: overlap is measured there, and other branches start from it.
        "phase_end": step.is_phase_end,
        "teachers": [str(teacher.ref) for teacher in step.teachers],
        "skipped": update.skipped,
        # Log-probabilities of a fixed text: the service refuses the revision if its engine computes others.
        "canary": learner.canary(step.branch),
    }
    with span("publish"), tempfile.TemporaryDirectory(prefix="coevo-") as folder:
        await asyncio.to_thread(learner.save, step.branch, Path(folder))
        manifest = await context.client.publish(
            step.branch,
            step.number,
            Path(folder),
            parent=step.number - 1,  # refused if the branch's head is another by now
            # The fence: a token that is no longer the newest is refused, so a worker thought dead changes nothing.
            token=None if lease is None else lease.token,
            job=None if lease is None else lease.job.id,
            base=learner.base,
            meta=meta,
        )
    # Not before: a step lost between update and commit leaves no trace, the branch is brought anew from the store.
    learner.advance(step.branch, step.number, manifest.digest)
    return manifest
