"""How often models answer held-out questions rightly: every capability and benchmark of a recipe, many models at once.

A model is whatever the service answers by a name: `base`, `text@40`, `merged`. All of them get the same questions with
the same seeds, so that two can be compared question by question, and equal seeds give equal answers. What counts is
the answer alone, without the share of a reward that is for its form. Every answer is kept.

Left out: training, and which models there are to measure.

Axes: Q questions.
"""

import asyncio
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from trainer.data.generated import generated
from trainer.data.held_out import SEED, held_out_data, held_out_prompts, open_benchmark
from trainer.data.lengths import fit
from trainer.data.prompts import Prompts
from trainer.evaluation.intervals import Interval, average, interval
from trainer.evaluation.ways import KINDS, Decoding, kind_of, ways_of
from trainer.miniature.blind import best_constant, best_guess
from trainer.miniature.question import questions
from trainer.parts import Rollout
from trainer.recipe import AnswersConfig, Data, MiniatureData, Recipe, RewardConfig
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.rollout.sample import MAX_CALLS, judge, sample, seeds

_FITTED_TO = 2000
"""Training questions that the blind level is fitted to: enough that the commonest answers stand out."""
_SLICE = 32
"""Questions judged together, while others are still being answered. A slice of all questions would leave the judges
idle until the last answer, and the engine after it."""

Decode = Callable[[Sequence[int]], str]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Questions and how their answers are taken and judged."""

    name: str
    """That of the capability or the benchmark."""
    capability: str
    prompts: Prompts
    rule: Rule
    deadline_s: float
    ways: tuple[Decoding, ...]
    blind: float | None = None
    """What the best answer gets that looks at nothing, where that is known."""


@dataclass(frozen=True, slots=True)
class ExamAnswer:
    model: str
    exam: str
    way: str
    index: int
    """The question's, in its exam."""
    question: str
    """The question's id."""
    number: int
    """The answer's, among those of its question."""
    text: str
    reward: float | None
    why: str | None
    """Why it could not be judged."""
    tokens: int
    is_cut_off: bool

    def to_json(self) -> dict[str, Any]:
        # Files of answers say `place`, and are read by people's own scripts.
        return {"place" if name == "index" else name: value for name, value in asdict(self).items()}


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
    """The mean length of an answer."""


def as_lines(items: Iterable[ExamAnswer]) -> str:
    """Answers in full, a line of JSON for each: a file of them."""
    return "".join(json.dumps(item.to_json()) + "\n" for item in items)


# ---- what is asked ----


def exams(recipe: Recipe, most: int | None = None, only: Collection[str] | None = None, *, draw: int = 0) -> list[Exam]:
    """An exam for each capability and each benchmark, or for `only` those named; with `most`, so many questions of
    each. None that are too long. The miniature makes up others for another `draw`."""
    evaluation, limits = recipe.evaluation, Limits()
    names = [*recipe.capabilities, *evaluation.sets]
    chosen = names if only is None else only
    for name in chosen:
        if name not in names:
            raise UserError(f"--exam {name}: the recipe has no such exam; it has {', '.join(names)}")
    fitting = fit(recipe, base_of(recipe))
    opened: list[Exam] = []
    for name, capability in recipe.capabilities.items():
        if name in chosen:
            prompts = fitting(
                name, held_out_prompts(name, capability, evaluation.questions, limits=limits, most=most, draw=draw)
            )
            data = held_out_data(capability)
            opened.append(_exam(name, name, prompts, data, capability.reward, evaluation.answers, draw))
    for name, benchmark in evaluation.sets.items():
        if name in chosen:
            if name in recipe.capabilities:
                raise UserError(f"evaluation.sets.{name}: a capability has that name; give the benchmark another")
            data = benchmark.data
            prompts = fitting(name, open_benchmark(name, data, most, limits=limits, draw=draw))
            opened.append(_exam(name, benchmark.capability, prompts, data, benchmark.reward, benchmark.answers, draw))
    return opened


def decoder(recipe: Recipe) -> Decode:
    from transformers import AutoTokenizer  # seconds to import, and most commands need no tokenizer

    decode: Any = partial(AutoTokenizer.from_pretrained(locate(recipe.base.name)).decode, skip_special_tokens=True)
    return decode


def _exam(
    name: str,
    capability: str,
    prompts: Prompts,
    data: Data | None,
    reward: RewardConfig,
    answers: AnswersConfig,
    draw: int,
) -> Exam:
    # Only generated questions have endless others to fit a blind answer to.
    blind = blind_level(data, len(prompts), draw) if isinstance(data, MiniatureData) else None
    return Exam(name, capability, prompts, answer_rule(reward), reward.deadline_s, ways_of(answers), blind)


def answer_rule(reward: RewardConfig) -> Rule:
    """The answer alone, without the share of a reward that is for its form."""
    return Rule(reward.kind, 0.0, reward.format_pattern, reward.tolerance, reward.folder)


def blind_level(data: MiniatureData, count: int, draw: int = 0) -> float:
    """The accuracy on the first `count` generated questions of the best answer that looks at nothing."""
    capability = generated(data.name, data.type)
    measured = list(itertools.islice(questions(capability, data.split, SEED + draw, data.level), count))
    known = list(itertools.islice(questions(capability, "train", SEED, data.level), _FITTED_TO))
    return max(best_constant(known, measured), best_guess(known, measured))


async def pinned(client: AsyncClient, names: Iterable[str]) -> list[str]:
    """The models by names that stay what they are: a branch's name alone is its head of this moment."""
    if not await client.ready():
        raise UserError(f"{client.url}: no service is ready there; start one (coevo serve) or set COEVO_SERVICE_URL")
    branches = (await client.adapters()).branches
    models: dict[str, None] = {}  # a name that is given twice is asked once
    for ref in [Ref.parse(name) for name in names]:
        branch, revision = branches.get(ref.branch), ref.revision
        if branch is None and ref.branch not in RESERVED:
            raise UserError(f"--adapter {ref}: the service has no such branch; it has {', '.join(['base', *branches])}")
        if branch is not None and revision is None:
            revision = branch.head
        elif branch is not None and revision not in branch.revisions:
            revisions = ", ".join(map(str, branch.revisions))
            raise UserError(f"--adapter {ref}: the service has no such revision of {ref.branch}; it has {revisions}")
        models[str(Ref(ref.branch, revision))] = None
    return list(models)


# ---- asking ----


@dataclass(frozen=True, slots=True)
class ExamSlice:
    """Some questions of an exam, for one model to answer in one way."""

    model: str
    exam: Exam
    way: Decoding
    indices: range
    seeds: Sequence[int]
    """Those of all questions of the exam."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What takes the answers to slices and judges them. All slices run at once; the calls are bounded."""

    client: AsyncClient
    pool: RewardPool
    max_tokens: int
    decode: Decode
    calls: asyncio.Semaphore

    async def examine(self, part: ExamSlice) -> list[ExamAnswer]:
        exam, indices = part.exam, part.indices
        size = prompts_together(part.way.n, self.max_tokens)
        starts = range(0, len(indices), size)
        calls = await gather_or_cancel(self.answer(part, indices[start : start + size]) for start in starts)
        # Rewards run in children of this process and block: in a thread, so that other slices are answered meanwhile.
        answered = [rollout for rollouts in calls for rollout in rollouts]
        judged = await asyncio.to_thread(judge, answered, self.pool, exam.rule, exam.deadline_s)
        return [
            ExamAnswer(
                part.model, exam.name, part.way.name, index, rollout.prompt.id, number, completion.text,
                completion.reward, completion.why, len(completion.ids_C), completion.is_cut_off,
            )
            for index, rollout in zip(indices, judged, strict=True)
            for number, completion in enumerate(rollout.completions)
        ]  # fmt: skip

    async def answer(self, part: ExamSlice, indices: range) -> list[Rollout]:
        """One call."""
        exam, way = part.exam, part.way
        async with self.calls:
            # Within the bound, and in a thread: opening a prompt may read its media from disk.
            prompts = await asyncio.to_thread(lambda: [exam.prompts[index] for index in indices])
            return await sample(
                self.client, part.model, prompts, n=way.n, max_tokens=self.max_tokens,
                seeds=[part.seeds[index] for index in indices], decode=self.decode, temperature=way.temperature,
                top_p=way.top_p,
            )  # fmt: skip


async def examine(
    client: AsyncClient,
    pool: RewardPool,
    models: Sequence[str],
    exams: Sequence[Exam],
    *,
    seed: int,
    max_tokens: int,
    decode: Decode,
    only: Mapping[str, Collection[str]] | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[ExamAnswer]:
    """Every answer of every model, judged. A model in `only` is asked the exams named there. `tell` hears how many
    questions of all are done."""
    # The model is no part of the seed: all models are asked with the same chance, so that two of them can be paired.
    question_seeds = {
        (exam.name, way.name): seeds(len(exam.prompts), seed, "evaluation", exam.name, way.name)
        for exam in exams
        for way in exam.ways
    }
    slices = [
        ExamSlice(
            model, exam, way, range(start, min(start + _SLICE, len(exam.prompts))), question_seeds[exam.name, way.name]
        )
        for model in models
        for exam in exams
        if only is None or exam.name in only.get(model, (exam.name,))
        for way in exam.ways
        for start in range(0, len(exam.prompts), _SLICE)
    ]
    # A call may carry several prompts. Their media are in memory while it lasts, so calls are fewer where they are
    # larger: at most 4 x MAX_CALLS prompts at once.
    largest = max((prompts_together(part.way.n, max_tokens) for part in slices), default=1)
    calls = asyncio.Semaphore(min(MAX_CALLS, 4 * MAX_CALLS // largest))
    examination = Examination(client, pool, max_tokens, decode, calls)
    done, total = 0, sum(len(part.indices) for part in slices)

    async def examine_and_tell(part: ExamSlice) -> list[ExamAnswer]:
        nonlocal done
        of_slice = await examination.examine(part)
        done += len(part.indices)
        tell(done, total)
        return of_slice

    answers = await gather_or_cancel(examine_and_tell(part) for part in slices)
    return [answer for of_slice in answers for answer in of_slice]


# ---- what it says ----


def exam_results(answers: Iterable[ExamAnswer], exams: Sequence[Exam]) -> list[ExamResult]:
    """A result for each exam, way and model, in the order in which they were asked."""
    groups: dict[tuple[str, str], dict[str, list[ExamAnswer]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        groups[answer.exam, answer.way][answer.model].append(answer)
    results: list[ExamResult] = []
    for exam in exams:
        for way in exam.ways:
            by_model = groups[exam.name, way.name]
            values = {model: question_means(of_model, len(exam.prompts)) for model, of_model in by_model.items()}
            first = next(iter(values.values()))  # the model that was named first: gains are over it
            results += [
                ExamResult(
                    model, exam.name, exam.capability, way.name, interval(values[model]),
                    interval(values[model] - first), exam.blind, len(exam.prompts),
                    float(np.mean([answer.reward is None for answer in of_model])),
                    float(np.mean([answer.is_cut_off for answer in of_model])),
                    float(np.mean([answer.tokens for answer in of_model])),
                )
                for model, of_model in by_model.items()
            ]  # fmt: skip
    return results


def question_means(answers: Iterable[ExamAnswer], count: int) -> Values:
    """The mean reward of each question's judged answers; NaN where there is none."""
    rewards: list[list[float]] = [[] for _ in range(count)]
    for answer in answers:
        if answer.reward is not None:
            rewards[answer.index].append(answer.reward)
    return np.array([sum(judged) / len(judged) if judged else math.nan for judged in rewards])


MEAN = "mean"
MEAN_OF_EXAMS = "mean over exams"


@dataclass(frozen=True, slots=True)
class MeanResult:
    """One model over all that it was asked."""

    name: str
    """`mean`, in which every capability counts alike, or `mean over exams`, the overall of the paper's tables."""
    model: str
    way: str
    accuracy: Interval
    gain: Interval


def capability_means(results: Sequence[ExamResult]) -> list[MeanResult]:
    """The means in which every capability counts alike, alone."""
    return [mean for mean in mean_results(results) if mean.name == MEAN]


def mean_results(results: Sequence[ExamResult]) -> list[MeanResult]:
    """By kind of way, whatever the number of samples; where a capability has no such answers, not at all.

    Exams count alike within their capability, and capabilities alike. Where a capability has several, the mean over
    all exams is told beside that.
    """
    capabilities = {result.capability for result in results}
    models, exam_names = (dict.fromkeys(getattr(result, key) for result in results) for key in ("model", "exam"))
    rows: list[MeanResult] = []
    for way in KINDS:
        for model in models:
            groups: dict[str, list[ExamResult]] = defaultdict(list)
            for result in results:
                if result.model == model and kind_of(result.way) == way:
                    groups[result.capability].append(result)
            # A mean over fewer capabilities would stand in one column with those over all of them.
            if set(groups) == capabilities:
                accuracy = average([average([exam.accuracy for exam in group]) for group in groups.values()])
                gain = average([average([exam.gain for exam in group]) for group in groups.values()])
                rows.append(MeanResult(MEAN, model, way, accuracy, gain))
            answered = [exam for group in groups.values() for exam in group]
            if len(answered) == len(exam_names) > len(capabilities):
                accuracy, gain = (average([getattr(exam, key) for exam in answered]) for key in ("accuracy", "gain"))
                rows.append(MeanResult(MEAN_OF_EXAMS, model, way, accuracy, gain))
    return rows
