"""How alike branches are: overlap of their likeliest tokens, and their symmetric KL divergence.

    O_k(student, teacher) = E |Top_k(student) & Top_k(teacher)| / k         over the tokens of y ~ student
    KL(a, b) = 1/2 E [log a - log b] + 1/2 E [log b - log a]                over those of y ~ a, and of y ~ b

For every pair of branches on every capability, from one completion of each held-out prompt by each branch at
temperature 1, which all branches score in one call. Every token counts alike. Equal seeds give equal numbers.

Left out: which prompts (`evaluate.exams`), and what is done about branches that drift apart.

Axes: M branches, N completions, C tokens of a completion, k likeliest tokens.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from adapters.names import BASE
from clients.client import AsyncClient
from service.concurrency import gather_or_cancel
from trainer.parts import Floats, Ids, Prompt
from trainer.recipe import BranchConfig, Edge
from trainer.rollout.sample import MAX_CALLS, Scores, sample, score, seeds

ALARM = 0.90

Matrix = tuple[tuple[tuple[float, ...], ...], ...]  # [student][teacher][capability]


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Of every branch with every branch."""

    branches: tuple[str, ...]
    capabilities: tuple[str, ...]
    top_k: int
    prompts: int
    """Of each capability, at most."""
    overlap: Matrix
    kl: Matrix
    """Symmetric, in nats a token. Sampled, so it may fall a little below 0."""

    def at(self, student: str, teacher: str, capability: str) -> tuple[float, float]:
        """Overlap and KL."""
        a, b, c = self.branches.index(student), self.branches.index(teacher), self.capabilities.index(capability)
        return self.overlap[a][b][c], self.kl[a][b][c]

    def to_json(self) -> dict[str, Any]:
        return _JSON.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, value: object) -> "Overlaps":
        return _JSON.validate_python(value)


_JSON = TypeAdapter(Overlaps)


async def measure_overlap(
    client: AsyncClient,
    branches: Sequence[str],
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    top_k: int,
    seed: int,
    max_tokens: int,
    decode: Callable[[Sequence[int]], str],
) -> Overlaps:
    """Between `branches`, each named with its revision, on the prompts of each capability."""
    room = asyncio.Semaphore(MAX_CALLS)

    async def scored(student: str, prompt: Prompt, seed: int) -> list[Scores]:
        async with room:
            rollouts = await sample(
                client, student, [prompt], n=1, max_tokens=max_tokens, seeds=[seed], decode=decode
            )  # fmt: skip
            found = await score(client, branches, rollouts, top_k=top_k)
        return [answer for of_branch in found for rollout in of_branch for answer in rollout]

    async def asked(student: str, capability: str) -> list[list[Scores]]:
        own = prompts[capability]
        chance = seeds(len(own), seed, "overlap", capability, student)
        found = await gather_or_cancel(scored(student, prompt, one) for prompt, one in zip(own, chance, strict=True))
        return [list(of_branch) for of_branch in zip(*found, strict=True)]

    pairs = [(student, capability) for student in branches for capability in prompts]
    answers = dict(zip(pairs, await gather_or_cancel(asked(*pair) for pair in pairs), strict=True))
    return compare(branches, answers, tuple(prompts), top_k=top_k, prompts=max(map(len, prompts.values())))


def compare(
    branches: Sequence[str],
    answers: Mapping[tuple[str, str], Sequence[Sequence[Scores]]],
    capabilities: Sequence[str],
    *,
    top_k: int,
    prompts: int,
) -> Overlaps:
    """From the scores [branch][completion] of what each student sampled on each capability."""
    numbers = range(len(branches))

    def of_pair(a: int, b: int, capability: str) -> tuple[float, float]:
        mine, theirs = answers[branches[a], capability], answers[branches[b], capability]
        top_a, top_b = (np.concatenate([one.top_ids_Ck for one in mine[number]]) for number in (a, b))
        return overlap(top_a, top_b), symmetric_kl(_logs(mine, a), _logs(mine, b), _logs(theirs, a), _logs(theirs, b))

    found = [[[of_pair(a, b, capability) for capability in capabilities] for b in numbers] for a in numbers]
    first, second = (
        tuple(tuple(tuple(values[which] for values in row) for row in rows) for rows in found) for which in (0, 1)
    )
    return Overlaps(tuple(branches), tuple(capabilities), top_k, prompts, first, second)


def overlap(student_Nk: Ids, teacher_Nk: Ids) -> float:
    """The mean share of a position's likeliest tokens that are the other's as well."""
    is_shared = (student_Nk[:, :, None] == teacher_Nk[:, None, :]).any(axis=2)
    return float(is_shared.mean())


def symmetric_kl(a_of_a: Floats, b_of_a: Floats, a_of_b: Floats, b_of_b: Floats) -> float:
    """From log-probabilities: `b_of_a` are those that b gives to the tokens that a sampled."""
    forward = np.mean(a_of_a - b_of_a, dtype=np.float64)
    backward = np.mean(b_of_b - a_of_b, dtype=np.float64)
    return float(forward + backward) / 2


def alarms(found: Overlaps, least: float = ALARM) -> Iterator[str]:
    """A line for people about every student that has left a teacher's reach. The base teaches nobody."""
    for student in found.branches:
        for teacher in found.branches:
            if student == teacher or BASE in (student, teacher):
                continue
            value, capability = min((found.at(student, teacher, name)[0], name) for name in found.capabilities)
            if value < least:
                yield (
                    f"overlap of {student} with {teacher} is {value:.3f} on {capability}, below {least:.2f}: its "
                    "teaching reaches less and less; take fewer RLVR steps a cycle (method.rlvr_steps)"
                )


def _logs(scores: Sequence[Sequence[Scores]], branch: int) -> Floats:
    return np.concatenate([one.logprobs_C for one in scores[branch]])


def lowest_overlap(
    found: Overlaps, revisions: Mapping[str, str], edges: Sequence[Edge], branches: Mapping[str, BranchConfig]
) -> float:
    """Over all edges, on each capability of the teacher. `revisions`: the names of the branches in `found`."""
    return min(
        found.at(revisions[edge.student], revisions[edge.teacher], capability)[0]
        for edge in edges
        for capability in branches[edge.teacher].capabilities
    )
