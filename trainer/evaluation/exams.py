"""How often models answer held-out questions rightly: every capability and benchmark of a recipe, many models at once.

A model is whatever the service answers by a name: `base`, `text@40`, `merged`. All of them get the same questions with
the same seeds, so that two can be compared question by question, and equal seeds give equal answers. What counts is
the answer alone, without the share of a reward that is for its form. Every answer is kept.

Left out: training, and which models there are to measure.

Axes: Q questions.
"""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.base import locate
from adapters.errors import UserError
from adapters.names import RESERVED, Ref
from clients.calls import prompts_together
from clients.client import AsyncClient
from service.concurrency import gather_or_cancel
from service.media import Limits
from trainer.data.base import base_of
from trainer.data.held_out import SEED, held_out_data, measured, open_benchmark
from trainer.data.lengths import fit
from trainer.data.prompts import Prompts
from trainer.evaluation.intervals import Interval, average, interval
from trainer.miniature.blind import best_constant, best_guess
from trainer.miniature.capabilities import capability as miniature_capability
from trainer.miniature.question import questions as miniature_questions
from trainer.recipe import AnswersConfig, DatasetData, MiniatureData, Recipe, RewardConfig
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.sample import MAX_CALLS, Rollout, judge, sample, seeds

_KNOWN = 2000  # training questions that the blind level is fitted to
_SLICE = 32  # questions judged together, while others are still being answered

Decode = Callable[[Sequence[int]], str]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a question is answered."""

    name: str
    """`greedy` or `avg@4`."""
    n: int
    temperature: float
    top_p: float


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Questions and how their answers are taken and judged."""

    name: str
    """Of the capability or the benchmark."""
    capability: str
    prompts: Prompts
    rule: Rule
    deadline_s: float
    ways: tuple[Decoding, ...]
    blind: float | None = None
    """What the best answer gets that looks at nothing, where that is known."""


@dataclass(frozen=True, slots=True)
class ExamAnswer:
    """One answer."""

    model: str
    exam: str
    way: str
    place: int
    """Of the question in its exam."""
    question: str
    """Its id."""
    number: int
    """Among the answers of that question."""
    text: str
    reward: float | None
    why: str | None
    """Why it could not be judged."""
    tokens: int
    is_cut_off: bool


@dataclass(frozen=True, slots=True)
class ExamResult:
    """One model in one exam, answered in one way."""

    model: str
    exam: str
    capability: str
    way: str
    accuracy: Interval
    gain: Interval
    """Over the first model, paired by question."""
    blind: float | None
    questions: int
    unscorable: float
    """Share of the answers that nobody could judge; they are in no mean."""
    cut_off: float
    tokens: float
    """Of an answer."""


# ---- what is asked ----


def exams(recipe: Recipe, most: int | None = None, only: Collection[str] | None = None, *, draw: int = 0) -> list[Exam]:
    """Of every capability and of every benchmark, or `only` those named; with `most`, so many questions of each. None
    that are too long. The miniature makes up others for another `draw`."""
    evaluation, limits = recipe.evaluation, Limits()
    fitting = fit(recipe, base_of(recipe))
    found: list[Exam] = []
    for name in only or ():
        if name not in recipe.capabilities and name not in evaluation.sets:
            there = ", ".join([*recipe.capabilities, *evaluation.sets])
            raise UserError(f"--exam {name}: the recipe has no such exam; it has {there}")
    for name, capability in recipe.capabilities.items():
        if only is not None and name not in only:
            continue
        prompts = fitting(name, measured(name, capability, evaluation.questions, limits=limits, most=most, draw=draw))
        found.append(_exam(name, name, prompts, held_out_data(capability), capability.reward, evaluation.answers, draw))
    for name, benchmark in evaluation.sets.items():
        if only is not None and name not in only:
            continue
        if name in recipe.capabilities:
            raise UserError(f"evaluation.sets.{name}: a capability has that name; give the benchmark another")
        data = benchmark.data
        prompts = fitting(name, open_benchmark(name, data, most, limits=limits, draw=draw))
        found.append(_exam(name, benchmark.capability, prompts, data, benchmark.reward, benchmark.answers, draw))
    return found


def decoder(recipe: Recipe) -> Decode:
    from transformers import AutoTokenizer

    decode: Any = partial(AutoTokenizer.from_pretrained(locate(recipe.base.name)).decode, skip_special_tokens=True)
    return decode


def _exam(
    name: str,
    capability: str,
    prompts: Prompts,
    data: MiniatureData | DatasetData | None,
    reward: RewardConfig,
    answers: AnswersConfig,
    draw: int,
) -> Exam:
    blind = blind_level(data, len(prompts), draw) if isinstance(data, MiniatureData) else None
    rule, ways = answer_rule(reward), tuple(_ways(answers))
    return Exam(name, capability, prompts, rule, reward.deadline_s, ways, blind)


def answer_rule(reward: RewardConfig) -> Rule:
    """The answer alone, without the share of a reward that is for its form."""
    return Rule(reward.kind, 0.0, reward.format_pattern, reward.tolerance)


def _ways(answers: AnswersConfig) -> Iterator[Decoding]:
    if answers.greedy:
        yield Decoding("greedy", 1, 0.0, 1.0)
    if answers.samples:
        yield Decoding(f"avg@{answers.samples}", answers.samples, answers.temperature, answers.top_p)


def blind_level(data: MiniatureData, count: int, draw: int = 0) -> float:
    """The accuracy on the miniature's first `count` questions of the best answer that looks at nothing."""
    made = miniature_capability(data.name)
    asked = list(itertools.islice(miniature_questions(made, data.split, SEED + draw, data.level), count))
    known = list(itertools.islice(miniature_questions(made, "train", SEED, data.level), _KNOWN))
    return max(best_constant(known, asked), best_guess(known, asked))


async def pinned(client: AsyncClient, names: Iterable[str]) -> list[str]:
    """The models by names that stay what they are: a branch's name alone is its head of this moment."""
    if not await client.ready():
        raise UserError(f"{client.url}: no service is ready there; start one (coevo serve) or set COEVO_SERVICE_URL")
    found = (await client.adapters()).branches
    refs = [Ref.parse(name) for name in names]
    for ref in refs:
        if ref.branch not in RESERVED and ref.branch not in found:
            raise UserError(f"--adapter {ref}: the service has no such branch; it has {', '.join(['base', *found])}")
        if ref.revision is not None and ref.branch in found and ref.revision not in found[ref.branch].revisions:
            kept = ", ".join(map(str, found[ref.branch].revisions))
            raise UserError(f"--adapter {ref}: the service has no such revision of {ref.branch}; it has {kept}")
    return list(dict.fromkeys(
        str(Ref(ref.branch, found[ref.branch].head) if ref.revision is None and ref.branch in found else ref)
        for ref in refs
    ))  # fmt: skip


# ---- asking ----


async def examine(
    client: AsyncClient,
    pool: RewardPool,
    models: Sequence[str],
    exams: Sequence[Exam],
    *,
    seed: int,
    max_tokens: int,
    decode: Decode,
) -> list[ExamAnswer]:
    """Every answer of every model, judged."""
    sizes = {way: prompts_together(way.n, max_tokens) for exam in exams for way in exam.ways}
    room = asyncio.Semaphore(min(MAX_CALLS, 4 * MAX_CALLS // max(sizes.values(), default=1)))  # for calls
    chances = {
        (exam.name, way.name): seeds(len(exam.prompts), seed, "evaluation", exam.name, way.name)
        for exam in exams
        for way in exam.ways
    }

    async def answered(model: str, exam: Exam, way: Decoding, places: Sequence[int]) -> list[Rollout]:
        chance = chances[exam.name, way.name]
        async with room:
            prompts = await asyncio.to_thread(lambda: [exam.prompts[place] for place in places])
            return await sample(
                client, model, prompts, n=way.n, max_tokens=max_tokens, seeds=[chance[place] for place in places],
                decode=decode, temperature=way.temperature, top_p=way.top_p,
            )  # fmt: skip

    async def judged(model: str, exam: Exam, way: Decoding, places: range) -> list[ExamAnswer]:
        size = sizes[way]
        answers = await gather_or_cancel(
            answered(model, exam, way, places[start : start + size]) for start in range(0, len(places), size)
        )
        rollouts = [rollout for several in answers for rollout in several]
        rollouts = await asyncio.to_thread(judge, rollouts, pool, exam.rule, exam.deadline_s)
        return [
            item
            for place, rollout in zip(places, rollouts, strict=True)
            for item in _items(rollout, model, exam, way, place)
        ]

    slices = [
        judged(model, exam, way, range(start, min(start + _SLICE, len(exam.prompts))))
        for model in models
        for exam in exams
        for way in exam.ways
        for start in range(0, len(exam.prompts), _SLICE)
    ]
    return [item for items in await gather_or_cancel(slices) for item in items]


def _items(rollout: Rollout, model: str, exam: Exam, way: Decoding, place: int) -> Iterator[ExamAnswer]:
    for number, answer in enumerate(rollout.completions):
        yield ExamAnswer(
            model, exam.name, way.name, place, rollout.prompt.id, number, answer.text, answer.reward, answer.why,
            len(answer.ids_C), answer.is_cut_off,
        )  # fmt: skip


# ---- what it says ----


def exam_results(items: Iterable[ExamAnswer], exams: Sequence[Exam]) -> list[ExamResult]:
    """By exam, way and model, in the order in which they were asked."""
    answers: dict[tuple[str, str], dict[str, list[ExamAnswer]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        answers[item.exam, item.way][item.model].append(item)
    found: list[ExamResult] = []
    for exam in exams:
        for way in exam.ways:
            of_model = answers[exam.name, way.name]
            values = {model: question_means(own, len(exam.prompts)) for model, own in of_model.items()}
            first = next(iter(values.values()))
            found += [_result(model, exam, way, own, values[model], first) for model, own in of_model.items()]
    return found


def question_means(items: Iterable[ExamAnswer], count: int) -> Values:
    """The mean reward of each question's judged answers; NaN where there is none."""
    rewards: list[list[float]] = [[] for _ in range(count)]
    for item in items:
        if item.reward is not None:
            rewards[item.place].append(item.reward)
    return np.array([sum(own) / len(own) if own else math.nan for own in rewards])


def _result(
    model: str, exam: Exam, way: Decoding, items: Sequence[ExamAnswer], values_Q: Values, first_Q: Values
) -> ExamResult:
    return ExamResult(
        model,
        exam.name,
        exam.capability,
        way.name,
        interval(values_Q),
        interval(values_Q - first_Q),
        exam.blind,
        len(exam.prompts),
        float(np.mean([item.reward is None for item in items])),
        float(np.mean([item.is_cut_off for item in items])),
        float(np.mean([item.tokens for item in items])),
    )


@dataclass(frozen=True, slots=True)
class MeanResult:
    """One model over all capabilities, each counting alike, and in each of them every exam."""

    model: str
    way: str
    accuracy: Interval
    gain: Interval


def mean_results(found: Sequence[ExamResult]) -> list[MeanResult]:
    """`greedy`, and `sampled` whatever the number of samples; where a capability has no such answers, not at all."""
    capabilities = {one.capability for one in found}
    rows: list[MeanResult] = []
    for way in ("greedy", "sampled"):
        for model in dict.fromkeys(one.model for one in found):
            own: Mapping[str, list[ExamResult]] = defaultdict(list)
            for one in found:
                if one.model == model and (one.way == "greedy") == (way == "greedy"):
                    own[one.capability].append(one)
            if set(own) == capabilities:
                accuracy = average([average([one.accuracy for one in several]) for several in own.values()])
                gain = average([average([one.gain for one in several]) for several in own.values()])
                rows.append(MeanResult(model, way, accuracy, gain))
    return rows
