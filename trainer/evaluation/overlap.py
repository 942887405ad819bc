"""How alike branches are: the probability that they share, overlap of their likeliest tokens, symmetric KL divergence.

    S(student, teacher) = E sum_v min(p_student(v), p_teacher(v))           over the tokens of y ~ student
    O_k(student, teacher) = E |Top_k(student) & Top_k(teacher)| / k         the same; the paper's
    KL(a, b) = 1/2 E [log a - log b] + 1/2 E [log b - log a]                over those of y ~ a, and of y ~ b

S is 1 minus the total variation distance, and at least 1 - sqrt(KL / 2). O_k counts tokens of hardly any probability
like all others: a random perturbation of the weights with a KL of 0.003 has the O_10 of a finished expert. So alarms
and rhythm go by S.

For every pair of branches on every capability, from one completion of each held-out prompt by each branch at
temperature 1, which all branches score in one call. Every token counts alike. Equal seeds give equal numbers.

Left out: which prompts (`trainer.evaluation.exams`), and what is done about branches that drift apart.

Axes: M branches, N completions, C tokens of a completion, k likeliest tokens.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from adapters.names import BASE
from clients.client import AsyncClient
from service.concurrency import gather_or_cancel
from trainer.parts import Floats, Ids, Prompt
from trainer.recipe import BranchConfig, Edge
from trainer.rollout.sample import MAX_CALLS, Scores, sample, score, seeds

ALARM = 0.97
"""The shared probability below which branches have drifted as far apart as experts that never met. On the miniature
those share 0.966 where their KL is 0.07, as after 100 steps in bench/results/compare; branches of CoPD, 0.984 to 0.995
(bench/results/likeness.json). Higher, and CoPD itself would alarm; lower, and nothing would."""

Matrix = tuple[tuple[tuple[float, ...], ...], ...]  # [student][teacher][capability]


class Likeness(NamedTuple):
    """How alike a student and a teacher are on one capability."""

    overlap: float
    kl: float
    shared: float | None
    """None: a run of before did not measure it."""


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
    shared: Matrix = ()
    """Empty in the events of a run of before."""

    def at(self, student: str, teacher: str, capability: str) -> Likeness:
        a, b, c = self.branches.index(student), self.branches.index(teacher), self.capabilities.index(capability)
        return Likeness(self.overlap[a][b][c], self.kl[a][b][c], self.shared[a][b][c] if self.shared else None)

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

    def of_pair(a: int, b: int, capability: str) -> tuple[float, float, float]:
        of_a, of_b = scores[branches[a], capability], scores[branches[b], capability]  # what a, and what b, sampled
        top_a, top_b = (np.concatenate([scored.top_ids_Ck for scored in of_a[number]]) for number in (a, b))
        log_a, log_b = (np.concatenate([scored.top_logprobs_Ck for scored in of_a[number]]) for number in (a, b))
        a_of_a, b_of_a, a_of_b, b_of_b = (
            np.concatenate([scored.logprobs_C for scored in sampled[number]])
            for sampled in (of_a, of_b)
            for number in (a, b)
        )
        kl = symmetric_kl(a_of_a, b_of_a, a_of_b, b_of_b)
        return overlap(top_a, top_b), kl, shared(top_a, log_a, top_b, log_b)

    # The diagonal too, though it is 1 and 0: an event's matrices have a row and a column for each branch.
    cells = [[[of_pair(a, b, capability) for capability in capabilities] for b in numbers] for a in numbers]
    overlaps, kls, shares = (
        tuple(tuple(tuple(likeness[field] for likeness in row) for row in rows) for rows in cells) for field in range(3)
    )
    return Overlaps(tuple(branches), tuple(capabilities), top_k, prompts, overlaps, kls, shares)


def overlap(student_Nk: Ids, teacher_Nk: Ids) -> float:
    """The mean share of a position's likeliest tokens that are the other's as well."""
    # Each of k against each of k. A position's tokens differ, so the mean over N and k is the mean of |both| / k.
    is_shared = (student_Nk[:, :, None] == teacher_Nk[:, None, :]).any(axis=2)
    return float(is_shared.mean())


def shared(student_Nk: Ids, student_logprobs_Nk: Floats, teacher_Nk: Ids, teacher_logprobs_Nk: Floats) -> float:
    """The mean of sum_v min(p(v), q(v)), from the likeliest tokens of both.

        sum over tokens in both of min(p, q)  +  min(1 - sum p, 1 - sum q)

    The second term takes what each leaves over for one token more, so that twins share 1. A token among the likeliest
    of one alone counts as none. The error at a position is at most what the likeliest tokens leave over, of whichever
    leaves more: below 0.001 on the miniature, and more where a distribution is flat.
    """
    p_Nk, q_Nk = np.exp(student_logprobs_Nk, dtype=np.float64), np.exp(teacher_logprobs_Nk, dtype=np.float64)
    is_same_Nkk = student_Nk[:, :, None] == teacher_Nk[:, None, :]
    common_N = (np.minimum(p_Nk[:, :, None], q_Nk[:, None, :]) * is_same_Nkk).sum(axis=(1, 2))
    # Rounding may take a sum a little above 1.
    rest_N = np.minimum(1 - p_Nk.sum(axis=1), 1 - q_Nk.sum(axis=1)).clip(min=0)
    return float((common_N + rest_N).mean())


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
            a, b = overlaps.branches.index(student), overlaps.branches.index(teacher)
            value, capability = min(zip(overlaps.shared[a][b], overlaps.capabilities, strict=True))
            if value < least:
                yield (
                    f"{student} shares {value:.3f} of its probability with {teacher} on {capability}, below "
                    f"{least:.2f}: as little as experts that never met; take fewer RLVR steps a cycle "
                    "(method.rlvr_steps)"
                )


def lowest_shared(
    overlaps: Overlaps, revisions: Mapping[str, str], edges: Sequence[Edge], branches: Mapping[str, BranchConfig]
) -> float:
    """Over all edges, on each capability of the teacher. `revisions`: the names of the branches in `overlaps`."""
    names, capabilities = overlaps.branches, overlaps.capabilities
    # A teacher teaches by prompts of its own capabilities: elsewhere the two may differ as they like.
    return min(
        overlaps.shared[names.index(revisions[edge.student])][names.index(revisions[edge.teacher])][index]
        for edge in edges
        for index in map(capabilities.index, branches[edge.teacher].capabilities)
    )
