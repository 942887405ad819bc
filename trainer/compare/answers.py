"""What every result of a comparison answers on held-out questions: `DIR/answers/seed-0.jsonl`, whole or not there.

A line for each result, exam and way of answering, with the reward of each question: all that the tables are made of.
Merges are examined as the adapters that they exactly are, so a seed is one round of questions, after one of validation
questions where each system has a scale of its own. Equal questions and chance for every result of a seed. The miniature
makes up others for every seed, so an interval shrinks with more of them; a data set asks all seeds the same.

Left out: training, and what the numbers say (`standings`).
"""

import json
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from adapters.errors import UserError
from adapters.names import BASE
from trainer.compare.choices import (
    ScaledModel,
    candidate,
    home_of,
    is_system,
    key_of,
    scales_of,
    tried_scales,
    validation_exams,
    write_candidates,
)
from trainer.evaluation.exams import Exam, ExamAnswer, as_lines, decoder, exam_results, exams, question_means
from trainer.evaluation.ways import kind_of
from trainer.local.examiner import Examiner, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.local.scales import best_scale
from trainer.plan.results import Result
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import Recipe
from trainer.recipe.file import write_resolved
from trainer.recipe.parts import ENGINE_RANKS
from trainer.reporting.percent import percent


@dataclass(frozen=True, slots=True)
class ResultAnswers:
    """The answers of one result in one exam, given in one way."""

    seed: int
    system: str
    row: str
    exam: str
    way: str
    """`primary`, `greedy` or `sampled`."""
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


_LINE = TypeAdapter(ResultAnswers)
_MERGES = TypeAdapter(dict[str, ScaledModel])


def path_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"seed-{seed}.jsonl"


def _merges_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"merges-{seed}.json"


def read_merges(out: Path, seed: int) -> dict[str, ScaledModel]:
    """How the systems of a seed were made; none if it was not examined yet."""
    path = _merges_of(out, seed)
    return _MERGES.validate_json(path.read_text()) if path.exists() else {}


def read_answers(path: Path) -> list[ResultAnswers]:
    """The answers of a seed; none if it was not examined yet."""
    if not path.exists():
        return []
    return [_LINE.validate_json(line) for line in path.read_text().splitlines()]


def examine_seed(
    recipe: Recipe, out: Path, seed: int, results: Sequence[Result], processes: ProcessGroup, store: Path
) -> None:
    """Adds the answers of these results, whose branches lie in the store, to those of the seed."""
    target = path_of(out, seed)
    target.parent.mkdir(exist_ok=True)
    before = read_answers(target)
    seed_exams = exams(recipe, draw=seed)
    with tempfile.TemporaryDirectory(prefix=".exam-", dir=out) as name:
        folder = Path(name)
        scaled = scale_systems(recipe, store, [result for result in results if is_system(result)], folder, processes)
        models: dict[str, Path | None] = {} if before else {BASE: None}  # the base was asked with the first results
        for result in results:
            if is_system(result):
                models[result.model] = candidate(result, scaled[key_of(result)].scale, folder)
            else:
                (ref,) = result.refs
                models[result.model] = store / ref.branch / str(ref.revision)
        items = ask(recipe, folder, processes, seed_exams, models)
    # The answers come last and in one rename: where they are, nothing else of these results is missing.
    _merges_of(out, seed).write_bytes(_MERGES.dump_json(read_merges(out, seed) | scaled, indent=1) + b"\n")
    write_items(out / "items" / target.name, items)
    draft = target.with_suffix(".draft")
    after = answers_of(items, seed_exams, seed, results)
    draft.write_text("".join(json.dumps(asdict(answers)) + "\n" for answers in [*before, *after]))
    draft.replace(target)


def write_items(path: Path, items: Sequence[ExamAnswer]) -> None:
    """Adds answers in full to the file, in place of what it has of the same models."""
    path.parent.mkdir(exist_ok=True)
    models = {item.model for item in items}
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    of_other_models = [line for line in lines if json.loads(line)["model"] not in models]
    draft = path.with_suffix(".draft")
    draft.write_text("".join(of_other_models) + as_lines(items))
    draft.replace(path)


def scale_systems(
    recipe: Recipe,
    store: Path,
    results: Sequence[Result],
    folder: Path,
    processes: ProcessGroup,
    *,
    is_asked: bool = False,
) -> dict[str, ScaledModel]:
    """Writes each result as an adapter at every scale that may be its own, and chooses; where there is one scale,
    validation questions are asked only if that is wanted."""
    assert recipe.comparison is not None
    scales = recipe.comparison.scales
    agreements = write_candidates(recipe, store, results, folder)
    if not results or (len(scales) < 2 and not is_asked):
        return {key_of(result): ScaledModel(scales_of(recipe, result)[0], {}, agreements[key_of(result)])
                for result in results}  # fmt: skip
    homes = {key_of(result): home_of(recipe, result) for result in results}
    candidates = {candidate(result, scale, folder): homes[key_of(result)] for result in results for scale in scales}
    # All of them answer together, in one start of the engines.
    validation = validation_exams(recipe, results)
    only = {path.name: home for path, home in candidates.items()}
    items = ask(recipe, folder, processes, validation, {path.name: path for path in candidates}, only)
    answered = exam_results(items, validation)
    models: dict[str, ScaledModel] = {}
    for result in results:
        key = key_of(result)
        accuracies = tried_scales(result, homes[key], scales, answered)
        tried = {f"{scale:g}": accuracy for scale, accuracy in accuracies.items()}
        models[key] = ScaledModel(best_scale(accuracies), tried, agreements[key])
        shown = ", ".join(f"{scale}: {percent(accuracy)}" for scale, accuracy in tried.items())
        print(f"scale of {key}, seed {result.seed}: {models[key].scale:g} (validation, {shown})", flush=True)
    return models


def ask(
    recipe: Recipe,
    folder: Path,
    processes: ProcessGroup,
    exams: Sequence[Exam],
    models: Mapping[str, Path | None],
    only: Mapping[str, Collection[str]] | None = None,
) -> list[ExamAnswer]:
    """Answers of adapters, and of the base as a model without a folder, through services that have nothing else.

    A model that is in `only` is asked the exams named there."""
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
            return Examiner(recipe, out, group, exams, decode).examine(names, rank=rank, extra=extra, only=only)

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
                    kind_of(way.name),  # for the tables `avg@4` and `avg@8` are both sampled
                    tuple(None if math.isnan(value) else round(value, 4) for value in means),
                    float(np.mean([answer.tokens for answer in answers])),
                    float(np.mean([answer.is_cut_off for answer in answers])),
                )
