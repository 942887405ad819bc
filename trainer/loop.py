"""The method, from top to bottom: one training step of one branch.

    rollouts -> rewards and teacher scores -> advantages -> parts -> update -> publish

Phase I of CoPD is a step with capabilities and no teachers: GRPO on the branch's own data. Phase II has both: a batch
of its own, and for each teacher the branch's own completions of that teacher's prompts, scored by both in one call.
Both end in the same thing, a `LossTerm`: completions with an advantage for each token. Everything that a step reads is
named by revision and every draw by (seed, branch, step), so a step can be made again.

    gather   what the engine, the judges and the teachers say (no weights)
    learn    the update of the adapter (no network)
    publish  the new revision

Left out: who makes which step and when (`plan`, `worker`), and everything that must not change what is computed.

Axes: G completions of a prompt, C tokens of a completion.
"""

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters.errors import UserError
from adapters.manifest import Manifest
from clients.client import AsyncClient
from trainer.data.prompts import Prompt, Prompts, draw
from trainer.parts import Floats, Group, LossTerm, TopK, TrainingSample
from trainer.plan.steps import Step, Teacher
from trainer.recipe import LossConfig
from trainer.recipe import RolloutConfig as Amounts
from trainer.recipe.method import Mix, Negative
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.advantages import group_advantages, negative_advantages, teacher_advantages
from trainer.rollout.metrics import engine_noise, rollout_metrics
from trainer.rollout.sample import Completion, Rollout, Scores, judge, sample, score, seeds
from trainer.update.learner import Learner
from trainer.update.update import Update

NATIVE = "native"


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Data and what judges the answers."""

    prompts: Prompts
    rule: Rule
    deadline_s: float


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where branches answer and are judged."""

    client: AsyncClient
    pool: RewardPool
    capabilities: Mapping[str, TrainingSet]
    decode: Callable[[Sequence[int]], str]
    seed: int
    amounts: Amounts
    loss: LossConfig
    mix: Mix = "equal"
    negative: Negative = field(default_factory=Negative)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A prompt's completions and what each of them teaches."""

    rollout: Rollout
    targets: tuple[TrainingSample | None, ...]
    """None: the completion left its group."""
    deltas: tuple[Floats, ...] | None = None
    """Teacher minus student, for each token."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step learns from."""

    parts: tuple[LossTerm, ...]
    lessons: Mapping[str, Sequence[Lesson]]
    """By part."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """A step that is over."""

    manifest: Manifest
    batch: Batch
    update: Update


async def train_step(step: Step, arena: StepContext, learner: Learner) -> StepResult:
    """From prompts to the published revision."""
    batch = await gather(step, arena)
    await learner.prepare(step.parent, arena.client)
    update = await asyncio.to_thread(learner.learn, step.branch, batch.parts)
    manifest = await publish(step, arena, learner, batch, update)
    return StepResult(manifest, batch, update)


# ---- what is learnt from ----


async def gather(step: Step, arena: StepContext) -> Batch:
    """All parts of a step together: they need nothing of each other."""
    found = await asyncio.gather(
        *([rl_term(step, arena)] if step.capabilities else []),
        *(distillation_term(step, teacher, arena) for teacher in step.teachers),
        *(control_term(step, capability, arena) for capability in step.negative),
    )
    lessons = {name: one for name, one, _ in found}
    parts = tuple(as_part(name, one) for name, one in lessons.items())
    return Batch(parts, lessons, {name: value for _, _, metrics in found for name, value in metrics.items()})


Found = tuple[str, list[Lesson], dict[str, float]]


async def rl_term(step: Step, arena: StepContext) -> Found:
    """GRPO: rewards of the branch's own capabilities, compared within each prompt."""
    shares = shares_of(step, arena)
    answered = await asyncio.gather(
        *(
            rollouts_of(step, arena, capability, NATIVE, share, arena.amounts.group_size)
            for capability, share in zip(step.capabilities, shares, strict=True)
            if share
        )
    )
    rollouts = [rollout for one in answered for rollout in one]
    answers = [answer for rollout in rollouts for answer in rollout.completions]
    if all(answer.reward is None for answer in answers):
        raise UserError(f"none of {len(answers)} completions could be scored, the first because {answers[0].why}")

    def lesson(rollout: Rollout) -> Lesson:
        advantages = group_advantages([answer.reward for answer in rollout.completions], std=arena.loss.std)
        targets = (
            None if advantage is None else _target(answer, np.full(len(answer.ids_C), advantage, np.float32))
            for answer, advantage in zip(rollout.completions, advantages, strict=True)
        )
        return Lesson(rollout, tuple(targets))

    return NATIVE, [lesson(rollout) for rollout in rollouts], rollout_metrics(NATIVE, rollouts)


async def distillation_term(step: Step, teacher: Teacher, arena: StepContext) -> Found:
    """Distillation: the student's own completions of the teacher's prompts, scored by both."""
    name, loss = teacher.name, arena.loss
    prompts, group_size = arena.amounts.opd_batch
    rollouts = await rollouts_of(step, arena, teacher.capability, name, prompts, group_size)
    top_k = loss.teacher_top_k if loss.teacher_signal == "top-k" else 0
    student, teaching = await score(arena.client, [str(step.parent), str(teacher.ref)], rollouts, top_k=top_k)

    def target(answer: Completion, own: Scores, other: Scores) -> TrainingSample:
        if top_k:
            bins = TopK(other.top_ids_Ck, other.top_logprobs_Ck, teacher.beta)
            return _target(answer, np.zeros_like(own.logprobs_C), bins)
        advantages_C = teacher_advantages(other.logprobs_C, own.logprobs_C, beta=teacher.beta, clamp=loss.delta_clamp)
        return _target(answer, advantages_C)

    def lesson(rollout: Rollout, own: Sequence[Scores], others: Sequence[Scores]) -> Lesson:
        targets = map(target, rollout.completions, own, others)
        deltas = (other.logprobs_C - mine.logprobs_C for mine, other in zip(own, others, strict=True))
        return Lesson(rollout, tuple(targets), tuple(deltas))

    lessons = [lesson(*one) for one in zip(rollouts, student, teaching, strict=True)]
    delta = np.concatenate([delta for one in lessons for delta in one.deltas or ()])
    metrics = rollout_metrics(name, rollouts) | {
        f"{name}/delta": float(delta.mean()),
        f"{name}/delta_abs": float(np.abs(delta).mean()),
        f"{name}/clamped": float((np.abs(delta) > loss.delta_clamp).mean()),
        f"{name}/self_delta": engine_noise(rollouts, student),
    }
    return name, lessons, metrics | await teacher_gap(name, teacher, arena, metrics[f"{name}/reward"])


async def teacher_gap(part: str, teacher: Teacher, arena: StepContext, reward: float) -> dict[str, float]:
    """How much better the teacher did at its own questions in the step that made it."""
    assert teacher.ref.revision is not None
    manifest = await arena.client.describe(teacher.ref.branch, teacher.ref.revision)
    metrics: Any = manifest.meta.get("metrics") or {}
    found = metrics.get(f"{NATIVE}/reward")
    return {} if found is None else {f"{part}/gap": float(found) - reward}


async def control_term(step: Step, capability: str, arena: StepContext) -> Found:
    """The control: no teacher, the student's own unlikely tokens are pushed down."""
    name, settings = f"negative-{capability}", arena.negative
    rollouts = await rollouts_of(step, arena, capability, name, *arena.amounts.opd_batch)

    def target(answer: Completion) -> TrainingSample:
        pushed_C = negative_advantages(
            answer.logprobs_C, advantage=settings.advantage, probability=settings.probability
        )
        return _target(answer, pushed_C)

    lessons = [Lesson(rollout, tuple(map(target, rollout.completions))) for rollout in rollouts]
    return name, lessons, rollout_metrics(name, rollouts)


async def rollouts_of(
    step: Step, arena: StepContext, capability: str, part: str, count: int, group_size: int
) -> list[Rollout]:
    """Prompts of a capability, answered by the branch as it was before the step, and judged."""
    data = arena.capabilities[capability]
    prompts = await asyncio.to_thread(prompts_of, step, arena, capability, part, count)
    rollouts = await sample(
        arena.client,
        str(step.parent),
        prompts,
        n=group_size,
        max_tokens=arena.amounts.max_completion_tokens,
        seeds=seeds(count, seed_of(step, arena), _stream(step, part, capability), step.number),
        decode=arena.decode,
        temperature=arena.amounts.temperature,
        top_p=arena.amounts.top_p,
        logprobs=True,
    )
    return await asyncio.to_thread(judge, rollouts, arena.pool, data.rule, data.deadline_s)


def prompts_of(step: Step, arena: StepContext, capability: str, part: str, count: int) -> list[Prompt]:
    """The prompts of a step."""
    prompts, stream = arena.capabilities[capability].prompts, _stream(step, part, capability)
    places = draw(prompts, seed=seed_of(step, arena), branch=stream, step=step.number - 1, count=count)
    return [prompts[at] for at in places]


def seed_of(step: Step, arena: StepContext) -> int:
    return arena.seed if step.seed is None else step.seed


def _stream(step: Step, part: str, capability: str) -> str:
    """Of chance: no two parts of a run draw alike."""
    return f"{step.stream or step.branch} {part} {capability}"


def as_part(name: str, lessons: Sequence[Lesson]) -> LossTerm:
    """A prompt that teaches nothing leaves."""
    groups: list[Group] = []
    for lesson in lessons:
        targets = tuple(target for target in lesson.targets if target is not None)
        if targets:
            prompt = lesson.rollout.prompt
            groups.append(Group(lesson.rollout.ids_P, prompt.images, prompt.videos, targets, prompt.capability))
    return LossTerm(name, tuple(groups))


def _target(answer: Completion, advantages_C: Any, bins: TopK | None = None) -> TrainingSample:
    return TrainingSample(answer.ids_C, advantages_C, answer.logprobs_C, bins)


def shares_of(step: Step, arena: StepContext) -> list[int]:
    """Prompts of each of the step's own capabilities: equally many, or as many as it has."""
    sizes = [len(arena.capabilities[name].prompts) if arena.mix == "proportional" else 1 for name in step.capabilities]
    return divided(arena.amounts.prompts, sizes)


def divided(total: int, sizes: Sequence[int]) -> list[int]:
    """In proportion; what does not divide goes to the largest remainders, the first of equals first."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    remainders = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % whole))
    for place in remainders[: total - sum(shares)]:
        shares[place] += 1
    return shares


# ---- the new revision ----


async def publish(
    step: Step,
    arena: StepContext,
    learner: Learner,
    batch: Batch,
    update: Update,
    *,
    token: int | None = None,
    job: str | None = None,
) -> Manifest:
    """The adapter with its moments and what is known of the step; a skipped step publishes its parent's weights.

    `token` and `job` are those of the lease, where there is a queue.
    """
    metrics = {name: value for name, value in {**batch.metrics, **update.metrics}.items() if np.isfinite(value)}
    meta = {
        "seed": seed_of(step, arena),
        "metrics": metrics,
        "phase_end": step.is_phase_end,
        "teachers": [str(teacher.ref) for teacher in step.teachers],
        "skipped": update.skipped,
        "canary": learner.canary(step.branch),
    }
    with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
        await asyncio.to_thread(learner.save, step.branch, Path(folder))
        manifest = await arena.client.publish(
            step.branch,
            step.number,
            Path(folder),
            parent=step.number - 1,
            token=token,
            job=job,
            base=learner.base,
            meta=meta,
        )
    learner.advance(step.branch, step.number)
    return manifest
