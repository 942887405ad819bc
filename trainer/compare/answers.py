"""What every result of a comparison answers on held-out questions: `DIR/answers/seed-0.jsonl`, whole or not there.

A line for each result, exam and way of answering, with the reward of each question: all that the tables are made of.
Merges are examined as the adapters that they exactly are, so a seed is one round of questions, after one of validation
questions where each merge has a scale of its own. Equal questions and chance for every result of a seed. The miniature
makes up others for every seed, so an interval shrinks with more of them; a data set asks all seeds the same.

Left out: training, and what the numbers say (`standings`).
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from adapters.base import locate
from adapters.errors import UserError
from adapters.merge import cosines, make_merge_plan, write_adapter
from adapters.merge_inputs import open_base, open_revision
from adapters.names import BASE
from trainer.evaluation.exams import (
    Exam,
    ExamAnswer,
    ExamResult,
    capability_means,
    decoder,
    exam_results,
    exams,
    question_means,
)
from trainer.local.examiner import Examiner, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.local.scales import best_scale
from trainer.plan.comparison import Result
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import AnswersConfig, Recipe
from trainer.recipe.file import write_resolved
from trainer.recipe.parts import ENGINE_RANKS

Ask = Callable[[Sequence[Exam], Mapping[str, Path | None]], list[ExamAnswer]]


@dataclass(frozen=True, slots=True)
class ResultAnswers:
    """The answers of one result in one exam, given in one way."""

    seed: int
    system: str
    row: str
    exam: str
    way: str
    """`greedy` or `sampled`."""
    rewards: tuple[float | None, ...]
    """The mean of each question's answers; None: nobody could judge them."""
    tokens: float
    """The mean length of an answer."""
    cut_off: float
    """The share of answers that reached the most tokens."""

    @property
    def values(self) -> NDArray[np.float64]:
        """The rewards as an array, with NaN for None."""
        return np.array([math.nan if reward is None else reward for reward in self.rewards])


@dataclass(frozen=True, slots=True)
class MergedModel:
    """How the branches of a system were merged."""

    scale: float
    tried: dict[str, float]
    """Accuracy on validation questions, by scale; empty: there was no choice."""
    cosines: dict[str, float | None]
    """Between the deltas of two branches; None where one of them is zero."""


_LINE = TypeAdapter(ResultAnswers)
_MERGES = TypeAdapter(dict[str, MergedModel])


def path_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"seed-{seed}.jsonl"


def _merges_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"merges-{seed}.json"


def read_merges(out: Path, seed: int) -> dict[str, MergedModel]:
    """The merges of a seed, by system; none if it was not examined yet."""
    path = _merges_of(out, seed)
    return _MERGES.validate_json(path.read_text()) if path.exists() else {}


def read_answers(path: Path) -> list[ResultAnswers]:
    """The answers of a seed; none if it was not examined yet."""
    if not path.exists():
        return []
    return [_LINE.validate_json(line) for line in path.read_text().splitlines()]


def examine_seed(recipe: Recipe, out: Path, seed: int, results: Sequence[Result], processes: ProcessGroup) -> None:
    """Adds the answers of these results to those of the seed."""
    target = path_of(out, seed)
    target.parent.mkdir(exist_ok=True)
    before = read_answers(target)
    seed_exams = exams(recipe, draw=seed)
    with tempfile.TemporaryDirectory(prefix=".exam-", dir=out) as name:
        folder = Path(name)
        ask = partial(_ask, recipe, folder, processes)
        merges = _merge(recipe, out / "store", [result for result in results if result.is_merge], folder, ask)
        models: dict[str, Path | None] = {} if before else {BASE: None}  # the base was asked with the first results
        for result in results:
            if result.is_merge:
                models[result.model] = _candidate(result, merges[result.system].scale, folder)
            else:
                (ref,) = result.refs
                models[result.model] = out / "store" / ref.branch / str(ref.revision)
        items = ask(seed_exams, models)
    # The answers come last and in one rename: where they are, nothing else of these results is missing.
    _merges_of(out, seed).write_bytes(_MERGES.dump_json(read_merges(out, seed) | merges, indent=1) + b"\n")
    draft = target.with_suffix(".draft")
    after = answers_of(items, seed_exams, seed, results)
    draft.write_text("".join(json.dumps(asdict(answers)) + "\n" for answers in [*before, *after]))
    draft.replace(target)


def _merge(recipe: Recipe, store: Path, merges: Sequence[Result], folder: Path, ask: Ask) -> dict[str, MergedModel]:
    """Writes each merge as an adapter at every scale that may be its own, and chooses."""
    assert recipe.comparison is not None
    scales = recipe.comparison.scales or (recipe.merge.scale,)
    base = open_base(locate(recipe.base.name), recipe.base.name)

    # 1. Candidates, and how far the branches of each merge agree.
    agreements: dict[str, dict[str, float | None]] = {}
    for merge in merges:
        branches = [open_revision(store, ref, base) for ref in merge.refs]
        for scale in scales:
            write_adapter(base, make_merge_plan(branches, {}, scale=scale), _candidate(merge, scale, folder))
        agreements[merge.system] = {
            " - ".join(name.removeprefix(f"s{merge.seed}-") for name in pair.split()): cosine
            for pair, cosine in cosines(base, branches).items()
        }
    if len(scales) == 1 or not merges:
        return {system: MergedModel(scales[0], {}, agreement) for system, agreement in agreements.items()}

    # 2. Scales, by validation questions on which nothing is reported: the best of several on the questions of the
    #    tables would be ahead by luck. All merges answer together, in one start of the engine.
    candidates = [_candidate(merge, scale, folder) for merge in merges for scale in scales]
    capabilities = {name for merge in merges for name in merge.capabilities}
    validation = exams(on_validation(recipe), only=capabilities, draw=merges[0].seed)
    items = ask(validation, {candidate.name: candidate for candidate in candidates})
    results = exam_results(items, validation)
    models: dict[str, MergedModel] = {}
    for merge in merges:
        accuracies = tried_scales(merge, scales, results)
        tried = {f"{scale:g}": accuracy for scale, accuracy in accuracies.items()}
        models[merge.system] = MergedModel(best_scale(accuracies), tried, agreements[merge.system])
    return models


def _candidate(merge: Result, scale: float, folder: Path) -> Path:
    """The folder of a merge at a scale, as an adapter. Its name is the model's."""
    return folder / f"{merge.model}-{100 * scale:.0f}"


def tried_scales(merge: Result, scales: Sequence[float], results: Sequence[ExamResult]) -> dict[float, float]:
    """Accuracy of a merge by scale, on what its own branches are for."""
    means = capability_means([result for result in results if result.capability in merge.capabilities])
    accuracy = {mean.model: mean.accuracy.mean for mean in means}
    return {scale: accuracy[_candidate(merge, scale, Path()).name] for scale in scales}


def on_validation(recipe: Recipe) -> Recipe:
    """The recipe whose exams are the miniature's validation questions, answered greedily."""
    plain = {name: config.model_copy(update={"held_out": None}) for name, config in recipe.capabilities.items()}
    greedy = recipe.evaluation.model_copy(update={"answers": AnswersConfig(samples=0), "sets": {}})
    return recipe.model_copy(update={"capabilities": plain, "evaluation": greedy})


def _ask(
    recipe: Recipe, folder: Path, processes: ProcessGroup, exams: Sequence[Exam], models: Mapping[str, Path | None]
) -> list[ExamAnswer]:
    """Answers of adapters, and of the base as a model without a folder, through services that have nothing else."""
    adapters = {name: path for name, path in models.items() if path is not None}
    ranks = [stacked_rank(path) for path in adapters.values()]
    if None in ranks:
        raise UserError(f"the ranks of a merge add up to more than {ENGINE_RANKS[-1]}; lower lora.rank")
    rank = max(rank for rank in ranks if rank is not None)
    # On a CPU an engine has one thread; a second one finds a core that training has left.
    count = 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1, len(models))
    decode = decoder(recipe)  # here: transformers imports lazily, which two threads at once must not ask it to

    def examined(number: int) -> list[ExamAnswer]:
        names, out = list(models)[number::count], folder / f"service-{number}"
        write_resolved(recipe, out)
        extra = {name: adapters[name] for name in names if name in adapters}
        environ = {**processes.environ, URL_VARIABLE: ""}  # the queue is the run's, not this service's
        with ProcessGroup(processes.folder / f"exam-{number}", environ, processes.is_stopped) as group:
            return Examiner(recipe, out, group, exams, decode).examine(names, rank=rank, extra=extra)

    with ThreadPoolExecutor(count) as threads:
        return [item for items in threads.map(examined, range(count)) for item in items]


def answers_of(
    items: Sequence[ExamAnswer], exams: Sequence[Exam], seed: int, results: Sequence[Result]
) -> Iterator[ResultAnswers]:
    """A line for each result, exam and way, the base first where it was asked."""
    groups: dict[tuple[str, str, str], list[ExamAnswer]] = {}
    for item in items:
        groups.setdefault((item.model, item.exam, item.way), []).append(item)
    base = [(BASE, "", BASE)] if any(item.model == BASE for item in items) else []
    for system, row, model in [*base, *((result.system, result.row, result.model) for result in results)]:
        for exam in exams:
            for way in exam.ways:
                answers = groups[model, exam.name, way.name]
                means = question_means(answers, len(exam.prompts)).tolist()
                yield ResultAnswers(
                    seed,
                    system,
                    row,
                    exam.name,
                    # The tables know two ways: `avg@4` and `avg@8` are both sampled.
                    "greedy" if way.name == "greedy" else "sampled",
                    tuple(None if math.isnan(value) else round(value, 4) for value in means),
                    float(np.mean([answer.tokens for answer in answers])),
                    float(np.mean([answer.is_cut_off for answer in answers])),
                )
