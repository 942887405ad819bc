"""How often each prompt is answered rightly, and which prompts are kept for it.

Prompts are answered several times each through the service, some at a time, however many there are. What is answered is
judged with whatever else waits for it, and is in a journal then: who is interrupted loses what was being answered and
no more. The journal's first line says what was asked, each other one what came of one prompt; so answers to something
else are not taken for these.

Left out: the rows that the prompts were made of (`trainer.data.export`).
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adapters.errors import UserError
from clients.client import AsyncClient, ServiceError
from service.concurrency import gather_or_cancel
from trainer.data.datasets import PromptSet
from trainer.data.prompts import Prompts
from trainer.evaluation.exams import Decode
from trainer.parts import Rollout
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.sample import MAX_CALLS, judge, sample, seeds

KEPT, NEVER, ALWAYS, OUTSIDE = "kept", "at 0 %", "at 100 %", "outside the bounds"
_BARS = 10
"""Steps from 0 to 100 % of a histogram, where there are that many answers: a screen shows them all."""
_TOGETHER = 32
"""Prompts judged in one batch, at most: a reward's deadline is for all of it."""
_ROW_ERRORS = ("damaged-media", "unsupported-media", "too-large")
"""What the service says of media that it cannot read: the fault of the row, which may be dropped."""


class PromptRate(BaseModel):
    """What came of one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    # Journals say `place`, and may be older than this program.
    index: int = Field(validation_alias="place", serialization_alias="place")
    """The prompt's, among all."""
    rate: float | None = None
    cut_off: float = 0.0
    """Share of the answers that reached the most tokens."""
    lost: Literal["unscorable", "unreadable"] | None = None
    """Why there is no rate: nobody could judge an answer, or nobody could read the row's media."""
    why: str | None = None
    """The same in the words of the reward, or of the service."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A prompt is kept whose rate lies between them."""

    above: float = 0.0
    below: float = 1.0


def pass_rate(rewards: Iterable[float | None]) -> float | None:
    """The mean of those that were judged; None where none was."""
    judged = [reward for reward in rewards if reward is not None]
    return sum(judged) / len(judged) if judged else None


def fate(prompt: PromptRate, bounds: Bounds) -> str:
    """`kept`, or why not."""
    if prompt.rate is None:
        return str(prompt.lost)
    if bounds.above < prompt.rate < bounds.below:
        return KEPT
    # A reward of one's own may give less than 0 or more than 1.
    return NEVER if prompt.rate <= 0 else ALWAYS if prompt.rate >= 1 else OUTSIDE


def histogram(rates: Iterable[float], samples: int) -> list[tuple[float, int]]:
    """Each step from 0 to 1 and how many rates are nearest to it. At 0 and at 1 stand those alone that are just so."""
    steps = max(2, min(samples, _BARS))
    counts = Counter[int]()
    for rate in rates:
        if 0 < rate < 1:
            # Rounded, but never to an end: 1 right answer of 64 is not never.
            counts[min(max(int(rate * steps + 0.5), 1), steps - 1)] += 1
        else:
            counts[0 if rate <= 0 else steps] += 1
    return [(step / steps, counts[step]) for step in range(steps + 1)]


# ---- the journal ----


@dataclass(frozen=True, slots=True)
class RateRequest:
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
        """The first line of a journal."""
        head = asdict(self)
        del head["rule"]["folder"]  # a journal goes on where the same module lies elsewhere
        return head


class Journal:
    """Rates on disk, appended to. The file comes to be with the first of them."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self._head = head
        self.rates: dict[int, PromptRate] = {}
        if path.exists():
            self.rates = {rate.index: rate for rate in _read(path, head)}

    def add(self, rates: Sequence[PromptRate]) -> None:
        """They outlive this process when it returns."""
        lines = [rate.model_dump_json(exclude_defaults=True, by_alias=True) for rate in rates]
        try:
            with self.path.open("a") as file:
                head = [] if file.tell() else [json.dumps(self._head)]
                file.write("".join(f"{line}\n" for line in [*head, *lines]))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.rates |= {rate.index: rate for rate in rates}


def _read(path: Path, head: Mapping[str, Any]) -> list[PromptRate]:
    # A last line without an end was being written when its process died. It is cut off: what is appended would be
    # on the same line.
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    first, *lines = whole.splitlines() or [json.dumps(head).encode()]
    try:
        then = cast(object, json.loads(first))
        rates = [PromptRate.model_validate_json(line) for line in lines]
    except ValueError:
        then, rates = None, []
    if not isinstance(then, dict):
        raise UserError(f"{path}: not what this command has left there; remove it, or take another name with --out")
    now = cast(dict[str, Any], json.loads(json.dumps(head)))  # as JSON has it: a tuple is a list there
    for key, value in cast(dict[str, Any], then).items():
        if now.get(key) != value:
            change = f"{key} was {_shown(value)} and is {_shown(now.get(key))}"
            raise UserError(f"{path}: answers to something else: {change}; ask the same again, or remove the file")
    return rates


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


# ---- asking ----

AnsweredPrompt = tuple[int, Rollout | str]
"""The index of a prompt and its answers; or why it could not be asked."""


async def rate(
    client: AsyncClient,
    pool: RewardPool,
    prompts: Prompts,
    request: RateRequest,
    journal: Journal,
    *,
    decode: Decode,
    deadline_s: float,
    on_unreadable: str,
    tell: Callable[[int], None],
) -> None:
    """Every prompt that is not in the journal yet. `tell` hears how many are."""
    prompt_seeds = seeds(len(prompts), request.seed, "filter", request.capability)
    # All workers draw from this one iterator, so each prompt is taken once.
    unrated = iter([index for index in range(len(prompts)) if index not in journal.rates])
    # Bounded, so that answers do not pile up when the judges are slower than the engine.
    waiting = asyncio.Queue[AnsweredPrompt](MAX_CALLS)

    async def answer() -> None:
        for index in unrated:
            try:
                prompt = await asyncio.to_thread(prompts.__getitem__, index)
                (answers,) = await sample(
                    client, request.model, [prompt], n=request.samples, max_tokens=request.max_tokens,
                    seeds=[prompt_seeds[index]], decode=decode, temperature=request.temperature, top_p=request.top_p,
                )  # fmt: skip
            except UserError as error:
                answers = _unreadable(error, prompts, index, request.capability, on_unreadable)
            await waiting.put((index, answers))

    async def judge_all() -> None:
        while len(journal.rates) < len(prompts):
            batch = [await waiting.get()]
            while not waiting.empty() and len(batch) < _TOGETHER:
                batch.append(waiting.get_nowait())
            journal.add(await asyncio.to_thread(_rated, batch, pool, request.rule, deadline_s))
            tell(len(journal.rates))

    await gather_or_cancel([judge_all(), *(answer() for _ in range(MAX_CALLS))])


def _unreadable(error: UserError, prompts: Prompts, index: int, capability: str, on_unreadable: str) -> str:
    """Why, of a row that may be dropped; what else is wrong is raised."""
    is_of_service = isinstance(error, ServiceError)
    if not isinstance(prompts, PromptSet) or (is_of_service and error.type not in _ROW_ERRORS):
        raise error
    if on_unreadable == "drop":
        return str(error)
    # What was read here names its row already; the service knows of none.
    where = f"{prompts.label(index)}: " if is_of_service else ""
    raise UserError(f'{where}{error}; capabilities.{capability}.data.on_unreadable = "drop" goes on without') from None


def _rated(batch: Sequence[AnsweredPrompt], pool: RewardPool, rule: Rule, deadline_s: float) -> list[PromptRate]:
    """Judges what was answered. Blocks."""
    rollouts = iter(judge([answers for _, answers in batch if isinstance(answers, Rollout)], pool, rule, deadline_s))
    rates: list[PromptRate] = []
    for index, answers in batch:
        if isinstance(answers, str):
            rates.append(PromptRate(index=index, lost="unreadable", why=answers))
            continue
        completions = next(rollouts).completions
        cut_off = float(np.mean([completion.is_cut_off for completion in completions]))
        mean = pass_rate(completion.reward for completion in completions)
        if mean is None:
            rates.append(PromptRate(index=index, cut_off=cut_off, lost="unscorable", why=completions[0].why))
        else:
            rates.append(PromptRate(index=index, cut_off=cut_off, rate=mean))
    return rates
