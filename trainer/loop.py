"""The method, from top to bottom: one training step of one branch.

    rollouts -> rewards and teacher scores -> advantages -> parts -> update -> publish

Phase I of CoPD is a step with capabilities and no teachers: GRPO on the branch's own data. Phase II has both: a batch
of its own, and for each teacher the branch's own completions of that teacher's prompts, scored by both in one call.
Both end in the same thing, a `Part`: completions with an advantage for each token. Everything that a step reads is
named by revision and every draw by (seed, branch, step), so a step can be made again.

    gather   what the engine, the judges and the teachers say (no weights)
    learn    the update of the adapter (no network)
    publish  the new revision

Left out: who makes which step and when (`plan`, `worker`), and everything that must not change what is computed.

Axes: G completions of a prompt, C tokens of a completion.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters.manifest import Manifest
from clients.client import AsyncClient
from trainer.advantages import group_advantages, negative_advantages, teacher_advantages
from trainer.data.prompts import Prompt, Prompts, draw
from trainer.learner import Learner
from trainer.measures import self_delta, told
from trainer.parts import Bins, Group, Part, Target
from trainer.plan import Step, Teacher
from trainer.recipe import Loss
from trainer.recipe import Rollout as Amounts
from trainer.recipe.method import Negative
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollouts import Answer, Rollout, Scores, judge, sample, score, seeds
from trainer.update import Update

NATIVE = "native"


@dataclass(frozen=True, slots=True)
class Capability:
    """Data and what judges the answers."""

    prompts: Prompts
    rule: Rule
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Arena:
    """Where branches answer and are judged."""

    client: AsyncClient
    pool: RewardPool
    capabilities: Mapping[str, Capability]
    decode: Callable[[Sequence[int]], str]
    seed: int
    amounts: Amounts
    loss: Loss
    negative: Negative = field(default_factory=Negative)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one step learns from."""

    parts: tuple[Part, ...]
    rollouts: Mapping[str, Sequence[Rollout]]
    """By part."""
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A step that is over."""

    manifest: Manifest
    batch: Batch
    update: Update


async def train_step(step: Step, arena: Arena, learner: Learner) -> Done:
    """From prompts to the published revision."""
    batch = await gather(step, arena)
    await learner.prepare(step.parent, arena.client)
    update = await asyncio.to_thread(learner.learn, step.branch, batch.parts)
    manifest = await publish(step, arena, learner, batch, update)
    return Done(manifest, batch, update)


# ---- what is learnt from ----


async def gather(step: Step, arena: Arena) -> Batch:
    """All parts of a step together: they need nothing of each other."""
    found = await asyncio.gather(
        *([_native(step, arena)] if step.capabilities else []),
        *(_taught(step, teacher, arena) for teacher in step.teachers),
        *(_discouraged(step, capability, arena) for capability in step.negative),
    )
    parts, rollouts, metrics = zip(*found, strict=True)
    by_part = {part.name: tuple(one) for part, one in zip(parts, rollouts, strict=True)}
    return Batch(parts, by_part, {name: value for one in metrics for name, value in one.items()})


Found = tuple[Part, list[Rollout], dict[str, float]]


async def _native(step: Step, arena: Arena) -> Found:
    """GRPO: rewards of the branch's own capabilities, compared within each prompt."""
    shares = _shares(arena.amounts.prompts, len(step.capabilities))
    answered = await asyncio.gather(
        *(
            _answered(step, arena, capability, NATIVE, share, arena.amounts.group_size)
            for capability, share in zip(step.capabilities, shares, strict=True)
        )
    )
    rollouts = [rollout for one in answered for rollout in one]

    def targets(rollout: Rollout) -> Iterator[Target]:
        advantages = group_advantages([answer.reward for answer in rollout.answers], std=arena.loss.std)
        for answer, advantage in zip(rollout.answers, advantages, strict=True):
            if advantage is not None:
                yield _target(answer, np.full(len(answer.ids_C), advantage, np.float32))

    return _part(NATIVE, rollouts, map(targets, rollouts)), rollouts, told(NATIVE, rollouts)


async def _taught(step: Step, teacher: Teacher, arena: Arena) -> Found:
    """Distillation: the student's own completions of the teacher's prompts, scored by both."""
    name, loss = teacher.name, arena.loss
    prompts, group_size = arena.amounts.opd_batch
    rollouts = await _answered(step, arena, teacher.capability, name, prompts, group_size)
    top_k = loss.teacher_top_k if loss.teacher_signal == "top-k" else 0
    student, teaching = await score(arena.client, [str(step.parent), str(teacher.ref)], rollouts, top_k=top_k)

    def target(answer: Answer, own: Scores, other: Scores) -> Target:
        if top_k:
            bins = Bins(other.top_ids_Ck, other.top_logprobs_Ck, teacher.beta)
            return _target(answer, np.zeros_like(own.logprobs_C), bins)
        advantages_C = teacher_advantages(other.logprobs_C, own.logprobs_C, beta=teacher.beta, clamp=loss.delta_clamp)
        return _target(answer, advantages_C)

    scored = [
        list(zip(rollout.answers, own, other, strict=True))
        for rollout, own, other in zip(rollouts, student, teaching, strict=True)
    ]
    part = _part(name, rollouts, ([target(*one) for one in group] for group in scored))
    delta = np.concatenate([other.logprobs_C - own.logprobs_C for group in scored for _, own, other in group])
    metrics = told(name, rollouts) | {
        f"{name}/delta": float(delta.mean()),
        f"{name}/delta_abs": float(np.abs(delta).mean()),
        f"{name}/clamped": float((np.abs(delta) > loss.delta_clamp).mean()),
        f"{name}/self_delta": self_delta(rollouts, student),
    }
    return part, rollouts, metrics | await _gap(name, teacher, arena, metrics[f"{name}/reward"])


async def _gap(part: str, teacher: Teacher, arena: Arena, reward: float) -> dict[str, float]:
    """How much better the teacher did at its own questions in the step that made it."""
    assert teacher.ref.revision is not None
    manifest = await arena.client.describe(teacher.ref.branch, teacher.ref.revision)
    metrics: Any = manifest.meta.get("metrics") or {}
    found = metrics.get(f"{NATIVE}/reward")
    return {} if found is None else {f"{part}/gap": float(found) - reward}


async def _discouraged(step: Step, capability: str, arena: Arena) -> Found:
    """The control: no teacher, the student's own unlikely tokens are pushed down."""
    name, settings = f"negative-{capability}", arena.negative
    rollouts = await _answered(step, arena, capability, name, *arena.amounts.opd_batch)

    def target(answer: Answer) -> Target:
        pushed_C = negative_advantages(
            answer.logprobs_C, advantage=settings.advantage, probability=settings.probability
        )
        return _target(answer, pushed_C)

    part = _part(name, rollouts, (map(target, rollout.answers) for rollout in rollouts))
    return part, rollouts, told(name, rollouts)


async def _answered(step: Step, arena: Arena, capability: str, part: str, count: int, group_size: int) -> list[Rollout]:
    """Prompts of a capability, answered by the branch as it was before the step, and judged."""
    data = arena.capabilities[capability]
    stream = f"{step.branch} {part} {capability}"
    places = draw(data.prompts, seed=arena.seed, branch=stream, step=step.number - 1, count=count)
    prompts: list[Prompt] = await asyncio.to_thread(lambda: [data.prompts[place] for place in places])
    rollouts = await sample(
        arena.client,
        str(step.parent),
        prompts,
        n=group_size,
        max_tokens=arena.amounts.max_completion_tokens,
        seeds=seeds(count, arena.seed, stream, step.number),
        decode=arena.decode,
        temperature=arena.amounts.temperature,
        top_p=arena.amounts.top_p,
    )
    return await asyncio.to_thread(judge, rollouts, arena.pool, data.rule, data.deadline_s)


def _part(name: str, rollouts: Sequence[Rollout], targets: Iterable[Iterable[Target]]) -> Part:
    """`targets` of each rollout; a prompt that has none leaves."""
    groups: list[Group] = []
    for rollout, found in zip(rollouts, map(tuple, targets), strict=True):
        if found:
            groups.append(Group(rollout.ids_P, rollout.prompt.images, rollout.prompt.videos, found))
    return Part(name, tuple(groups))


def _target(answer: Answer, advantages_C: Any, bins: Bins | None = None) -> Target:
    return Target(answer.ids_C, advantages_C, answer.logprobs_C, bins)


def _shares(total: int, count: int) -> list[int]:
    """Equal, the first ones larger by one where it does not divide."""
    return [total // count + (number < total % count) for number in range(count)]


# ---- the new revision ----


async def publish(step: Step, arena: Arena, learner: Learner, batch: Batch, update: Update) -> Manifest:
    """The adapter with its moments and what is known of the step; a skipped step publishes its parent's weights."""
    metrics = {name: value for name, value in {**batch.metrics, **update.metrics}.items() if np.isfinite(value)}
    meta = {
        "seed": arena.seed,
        "metrics": metrics,
        "phase_end": step.is_phase_end,
        "teachers": [str(teacher.ref) for teacher in step.teachers],
        "skipped": update.skipped,
        "canary": await asyncio.to_thread(learner.canary, step.branch),
    }
    with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
        await asyncio.to_thread(learner.save, step.branch, Path(folder))
        manifest = await arena.client.publish(
            step.branch, step.number, Path(folder), parent=step.number - 1, base=learner.base, meta=meta
        )
    learner.advance(step.branch, step.number)
    return manifest
