"""Prompts answered several times each through the service, judged, and noted down as they come.

Some are in hand at a time, however many there are. What is answered is judged with whatever else waits for it, and is
in the journal then: who is interrupted loses what was being answered and no more.

Left out: which prompts are kept for their rates (`data.pass_rates`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapters.errors import UserError
from clients.client import AsyncClient, ServiceError
from service.concurrency import gather_or_cancel
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.evaluation.exams import Decode
from trainer.evaluation.pass_rates import Journal, Rated, pass_rate
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.sample import MAX_CALLS, Rollout, judge, sample, seeds

_TOGETHER = 32
"""Prompts judged in one batch, at most: a reward's deadline is for all of it."""
_OF_THE_ROW = ("damaged-media", "unsupported-media", "too-large")
"""What the service says of media that it cannot read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """All that decides the rates."""

    capability: str
    model: str
    base: str
    """Its digest."""
    prompts: str
    """Their fingerprint."""
    seed: int
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    rule: Rule

    @property
    def head(self) -> dict[str, Any]:
        """Of a journal."""
        return asdict(self)

    def seeds(self, count: int) -> list[int]:
        return seeds(count, self.seed, "filter", self.capability)


Answered = tuple[int, Rollout | str]
"""The place of a prompt and its answers; or why it could not be asked."""


async def rate(
    client: AsyncClient,
    pool: RewardPool,
    prompts: Prompts,
    asked: Asked,
    journal: Journal,
    *,
    decode: Decode,
    deadline_s: float,
    on_unreadable: str,
    tell: Callable[[int], None],
) -> None:
    """Every prompt that is not in the journal yet. `tell` hears how many are."""
    chances = asked.seeds(len(prompts))
    left = iter([place for place in range(len(prompts)) if place not in journal.rated])
    waiting = asyncio.Queue[Answered](MAX_CALLS)

    async def answer() -> None:
        for place in left:
            try:
                prompt = await asyncio.to_thread(prompts.__getitem__, place)
                (found,) = await sample(
                    client, asked.model, [prompt], n=asked.samples, max_tokens=asked.max_tokens,
                    seeds=[chances[place]], decode=decode, temperature=asked.temperature, top_p=asked.top_p,
                )  # fmt: skip
            except UserError as error:
                found = _unreadable(error, prompts, place, asked.capability, on_unreadable)
            await waiting.put((place, found))

    async def judge_all() -> None:
        while len(journal.rated) < len(prompts):
            batch = await _taken(waiting)
            journal.add(await asyncio.to_thread(_rated, batch, pool, asked.rule, deadline_s))
            tell(len(journal.rated))

    await gather_or_cancel([judge_all(), *(answer() for _ in range(MAX_CALLS))])


async def _taken(waiting: asyncio.Queue[Answered]) -> list[Answered]:
    """All that wait, one at least."""
    batch = [await waiting.get()]
    while not waiting.empty() and len(batch) < _TOGETHER:
        batch.append(waiting.get_nowait())
    return batch


def _unreadable(error: UserError, prompts: Prompts, place: int, capability: str, on_unreadable: str) -> str:
    """Why, of a row that may be dropped; what else is wrong is raised."""
    is_of_service = isinstance(error, ServiceError)
    if not isinstance(prompts, PromptSet) or (is_of_service and error.type not in _OF_THE_ROW):
        raise error
    if on_unreadable == "drop":
        return str(error)
    where = f"{prompts.place(place)}: " if is_of_service else ""
    raise UserError(f'{where}{error}; capabilities.{capability}.data.on_unreadable = "drop" goes on without') from None


def _rated(batch: Sequence[Answered], pool: RewardPool, rule: Rule, deadline_s: float) -> list[Rated]:
    """Blocks."""
    rollouts = iter(judge([one for _, one in batch if isinstance(one, Rollout)], pool, rule, deadline_s))
    return [
        Rated(place=place, lost="unreadable", why=one) if isinstance(one, str) else _of(place, next(rollouts))
        for place, one in batch
    ]


def _of(place: int, rollout: Rollout) -> Rated:
    found = pass_rate(answer.reward for answer in rollout.completions)
    cut_off = float(np.mean([answer.is_cut_off for answer in rollout.completions]))
    if found is None:
        return Rated(place=place, cut_off=cut_off, lost="unscorable", why=rollout.completions[0].why)
    return Rated(place=place, cut_off=cut_off, rate=found)
