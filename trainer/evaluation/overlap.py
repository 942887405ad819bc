"""How alike branches are: overlap of their likeliest tokens, and their symmetric KL divergence.

    O_k(student, teacher) = E |Top_k(student) & Top_k(teacher)| / k         over the tokens of y ~ student
    KL(a, b) = 1/2 E [log a - log b] + 1/2 E [log b - log a]                over those of y ~ a, and of y ~ b

For every pair of branches on every capability, from one completion of each held-out prompt by each branch at
temperature 1, which all branches score in one call. Every token counts alike. Equal seeds give equal numbers.

Left out: which prompts (`trainer.evaluation.exams`), and what is done about branches that drift apart.

Axes: M branches, N completions, C tokens of a completion, k likeliest tokens.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
"""Below it a student is out of a teacher's reach: the paper's CoPD stays above, its static pipeline falls below."""

Matrix = tuple[tuple[tuple[float, ...], ...], ...]  # [student][teacher][capability]


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Every branch with every branch, on every capability."""

    branches: tuple[str, ...]
    capabilities: tuple[str, ...]
    top_k: int
    prompts: int
    """How many of each capability, at most."""
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
    calls = asyncio.Semaphore(MAX_CALLS)

    async def scored(student: str, prompt: Prompt, seed: int) -> list[Scores]:
        """The scores of one completion by each branch."""
        # Sampled and scored under one permit: otherwise all are sampled before any is scored, and held meanwhile.
        async with calls:
            rollouts = await sample(
                client, student, [prompt], n=1, max_tokens=max_tokens, seeds=[seed], decode=decode
            )  # fmt: skip
            by_branch = await score(client, branches, rollouts, top_k=top_k)
        return [scores for of_branch in by_branch for of_rollout in of_branch for scores in of_rollout]

    async def scores_of(student: str, capability: str) -> list[list[Scores]]:
        questions = prompts[capability]
        prompt_seeds = seeds(len(questions), seed, "overlap", capability, student)
        by_prompt = await gather_or_cancel(map(partial(scored, student), questions, prompt_seeds))
        return [list(of_branch) for of_branch in zip(*by_prompt, strict=True)]

    pairs = [(student, capability) for student in branches for capability in prompts]
    scores = dict(zip(pairs, await gather_or_cancel(scores_of(*pair) for pair in pairs), strict=True))
    return compare(branches, scores, tuple(prompts), top_k=top_k, prompts=max(map(len, prompts.values())))


def compare(
    branches: Sequence[str],
    scores: Mapping[tuple[str, str], Sequence[Sequence[Scores]]],
    capabilities: Sequence[str],
    *,
    top_k: int,
    prompts: int,
) -> Overlaps:
    """The overlaps by the scores [branch][completion] of what each student sampled on each capability."""
    numbers = range(len(branches))

    def of_pair(a: int, b: int, capability: str) -> tuple[float, float]:
        of_a, of_b = scores[branches[a], capability], scores[branches[b], capability]  # what a, and what b, sampled
        top_a, top_b = (np.concatenate([scored.top_ids_Ck for scored in of_a[number]]) for number in (a, b))
        a_of_a, b_of_a, a_of_b, b_of_b = (
            np.concatenate([scored.logprobs_C for scored in sampled[number]])
            for sampled in (of_a, of_b)
            for number in (a, b)
        )
        return overlap(top_a, top_b), symmetric_kl(a_of_a, b_of_a, a_of_b, b_of_b)

    # The diagonal too, though it is 1 and 0: an event's matrices have a row and a column for each branch.
    cells = [[[of_pair(a, b, capability) for capability in capabilities] for b in numbers] for a in numbers]
    overlaps = tuple(tuple(tuple(overlap for overlap, _ in row) for row in rows) for rows in cells)
    kls = tuple(tuple(tuple(kl for _, kl in row) for row in rows) for rows in cells)
    return Overlaps(tuple(branches), tuple(capabilities), top_k, prompts, overlaps, kls)


def overlap(student_Nk: Ids, teacher_Nk: Ids) -> float:
    """The mean share of a position's likeliest tokens that are the other's as well."""
    # Each of k against each of k. A position's tokens differ, so the mean over N and k is the mean of |both| / k.
    is_shared = (student_Nk[:, :, None] == teacher_Nk[:, None, :]).any(axis=2)
    return float(is_shared.mean())


def symmetric_kl(a_of_a: Floats, b_of_a: Floats, a_of_b: Floats, b_of_b: Floats) -> float:
    """From log-probabilities: `b_of_a` are those that b gives to the tokens that a sampled."""
    # In 64 bits: differences of a few thousandths are summed over many thousand tokens.
    forward = np.mean(a_of_a - b_of_a, dtype=np.float64)
    backward = np.mean(b_of_b - a_of_b, dtype=np.float64)
    return float(forward + backward) / 2


def alarms(overlaps: Overlaps, least: float = ALARM) -> Iterator[str]:
    """A line for people about every student that has left a teacher's reach. The base teaches nobody."""
    for student in overlaps.branches:
        for teacher in overlaps.branches:
            if student == teacher or BASE in (student, teacher):
                continue
            value, capability = min((overlaps.at(student, teacher, name)[0], name) for name in overlaps.capabilities)
            if value < least:
                yield (
                    f"overlap of {student} with {teacher} is {value:.3f} on {capability}, below {least:.2f}: its "
                    "teaching reaches less and less; take fewer RLVR steps a cycle (method.rlvr_steps)"
                )


def lowest_overlap(
    overlaps: Overlaps, revisions: Mapping[str, str], edges: Sequence[Edge], branches: Mapping[str, BranchConfig]
) -> float:
    """Over all edges, on each capability of the teacher. `revisions`: the names of the branches in `overlaps`."""
    # A teacher teaches by prompts of its own capabilities: elsewhere the two may differ as they like.
    return min(
        overlaps.at(revisions[edge.student], revisions[edge.teacher], capability)[0]
        for edge in edges
        for capability in branches[edge.teacher].capabilities
    )
