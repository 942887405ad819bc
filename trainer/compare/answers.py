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

from adapters import merge
from adapters.base import locate
from adapters.errors import UserError
from adapters.merge_inputs import open_base, open_revision
from adapters.names import BASE
from trainer.evaluation.exams import (
    Exam,
    ExamAnswer,
    ExamResult,
    decoder,
    exam_results,
    exams,
    mean_results,
    question_means,
)
from trainer.local.examiner import Examiner, best_scale, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.plan.comparison import Result
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import AnswersConfig as Answering
from trainer.recipe import Recipe
from trainer.recipe.file import write_resolved
from trainer.recipe.parts import ENGINE_RANKS


@dataclass(frozen=True, slots=True)
class ResultAnswers:
    """Of one result in one exam, answered in one way."""

    seed: int
    system: str
    row: str
    exam: str
    way: str
    """`greedy` or `sampled`."""
    rewards: tuple[float | None, ...]
    """The mean of each question's answers; None: nobody could judge them."""
    tokens: float
    """Of an answer."""
    cut_off: float
    """Share of the answers."""

    @property
    def values(self) -> NDArray[np.float64]:
        """By question."""
        return np.array([math.nan if one is None else one for one in self.rewards])


@dataclass(frozen=True, slots=True)
class MergedModel:
    """How the branches of a system were made one."""

    scale: float
    tried: dict[str, float]
    """Accuracy on validation questions, by scale; empty: there was no choice."""
    cosines: dict[str, float | None]
    """Between the deltas of two branches."""


_LINE = TypeAdapter(ResultAnswers)
_MERGES = TypeAdapter(dict[str, MergedModel])


def path_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"seed-{seed}.jsonl"


def _merges_of(out: Path, seed: int) -> Path:
    return out / "answers" / f"merges-{seed}.json"


def read_merges(out: Path, seed: int) -> dict[str, MergedModel]:
    """By system."""
    path = _merges_of(out, seed)
    return _MERGES.validate_json(path.read_text()) if path.exists() else {}


def read_answers(path: Path) -> list[ResultAnswers]:
    """None if the seed was not examined yet."""
    if not path.exists():
        return []
    return [_LINE.validate_json(line) for line in path.read_text().splitlines()]


def examine_seed(
    recipe: Recipe,
    out: Path,
    seed: int,
    entries: Sequence[Result],
    processes: ProcessGroup,
) -> None:
    """Adds these results to those of the seed."""
    target = path_of(out, seed)
    target.parent.mkdir(exist_ok=True)
    before = read_answers(target)
    asked = exams(recipe, draw=seed)
    with tempfile.TemporaryDirectory(prefix=".exam-", dir=out) as name:
        folder = Path(name)
        ask = partial(_asked_of, recipe, folder=folder, processes=processes)
        merges = _merged(recipe, out / "store", [entry for entry in entries if entry.is_merge], folder, ask)
        models = {} if before else {BASE: None}  # the base was asked with the first ones
        items = ask(asked, models | _adapters(out / "store", entries, merges, folder))
    _merges_of(out, seed).write_bytes(_MERGES.dump_json(read_merges(out, seed) | merges, indent=1) + b"\n")
    draft = target.with_suffix(".draft")
    after = answers_of(items, asked, seed, entries)
    draft.write_text("".join(json.dumps(asdict(one)) + "\n" for one in [*before, *after]))
    draft.replace(target)


def _merged(
    recipe: Recipe, store: Path, entries: Sequence[Result], folder: Path, ask: Callable[..., list[ExamAnswer]]
) -> dict[str, MergedModel]:
    """Writes each merge as an adapter, at every scale that may be its own."""
    assert recipe.comparison is not None
    base = open_base(locate(recipe.base.name), recipe.base.name)
    scales = recipe.comparison.scales or (recipe.merge.scale,)
    cosines: dict[str, dict[str, float | None]] = {}
    for entry in entries:
        branches = [open_revision(store, ref, base) for ref in entry.refs]
        for scale in scales:
            merge.write_adapter(
                base, merge.make_merge_plan(branches, {}, scale=scale), _folder_of(entry, scale, folder)
            )
        cosines[entry.system] = {
            " - ".join(name.removeprefix(f"s{entry.seed}-") for name in pair.split()): cosine
            for pair, cosine in merge.cosines(base, branches).items()
        }
    if len(scales) == 1 or not entries:
        return {system: MergedModel(scales[0], {}, of) for system, of in cosines.items()}
    candidates = {_candidate(entry, scale): (entry, scale) for entry in entries for scale in scales}
    own = {name for entry in entries for name in entry.capabilities}
    asked = exams(on_validation(recipe), only=own, draw=entries[0].seed)
    items = ask(asked, {name: _folder_of(*candidate, folder) for name, candidate in candidates.items()})
    found: dict[str, MergedModel] = {}
    answered = exam_results(items, asked)
    for entry in entries:
        tried = tried_scales(entry, scales, answered)
        shown = {f"{scale:g}": mean for scale, mean in tried.items()}
        found[entry.system] = MergedModel(best_scale(tried), shown, cosines[entry.system])
    return found


def tried_scales(entry: Result, scales: Sequence[float], answered: Sequence[ExamResult]) -> dict[float, float]:
    """Accuracy of a merge by scale, on what its own branches are for."""
    own = mean_results([one for one in answered if one.capability in entry.capabilities])
    accuracy = {one.model: one.accuracy.mean for one in own}
    return {scale: accuracy[_candidate(entry, scale)] for scale in scales}


def _candidate(entry: Result, scale: float) -> str:
    return f"{entry.model}-{100 * scale:.0f}"


def _folder_of(entry: Result, scale: float, folder: Path) -> Path:
    return folder / _candidate(entry, scale)


def on_validation(recipe: Recipe) -> Recipe:
    """Its likeliest answers to the miniature's validation questions, which nothing is reported on."""
    plain = {name: one.model_copy(update={"held_out": None}) for name, one in recipe.capabilities.items()}
    greedy = recipe.evaluation.model_copy(update={"answers": Answering(samples=0), "sets": {}})
    return recipe.model_copy(update={"capabilities": plain, "evaluation": greedy})


def _adapters(
    store: Path, entries: Sequence[Result], merges: Mapping[str, MergedModel], folder: Path
) -> dict[str, Path]:
    """Every result as the folder of one adapter, by the name that it is asked for."""
    return {
        entry.model: _folder_of(entry, merges[entry.system].scale, folder)
        if entry.is_merge
        else store / entry.refs[0].branch / str(entry.refs[0].revision)
        for entry in entries
    }


def _asked_of(
    recipe: Recipe,
    asked: Sequence[Exam],
    models: Mapping[str, Path | None],
    *,
    folder: Path,
    processes: ProcessGroup,
) -> list[ExamAnswer]:
    """Adapters, and the base as one without a folder, through services that have nothing else."""
    adapters = {name: path for name, path in models.items() if path is not None}
    ranks = [stacked_rank(path) for path in adapters.values()]
    if None in ranks:
        raise UserError(f"the ranks of a merge add up to more than {ENGINE_RANKS[-1]}; lower lora.rank")
    rank = max(rank for rank in ranks if rank is not None)
    names, count = list(models), min(_engines(), len(models))
    decode = decoder(recipe)  # here: transformers imports lazily, which two threads at once must not ask it to

    def examined(number: int) -> list[ExamAnswer]:
        own, out = names[number::count], folder / f"service-{number}"
        write_resolved(recipe, out)
        extra = {name: adapters[name] for name in own if name in adapters}
        environ = {**processes.environ, URL_VARIABLE: ""}
        with ProcessGroup(processes.folder / f"exam-{number}", environ, processes.is_stopped) as group:
            return Examiner(recipe, out, group, asked, decode).examine(own, rank=rank, extra=extra)

    with ThreadPoolExecutor(count) as threads:
        return [item for items in threads.map(examined, range(count)) for item in items]


def _engines() -> int:
    """On a CPU an engine has one thread; a second one finds a core that training has left."""
    return 1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def answers_of(
    items: Sequence[ExamAnswer], asked: Sequence[Exam], seed: int, entries: Sequence[Result]
) -> Iterator[ResultAnswers]:
    of: dict[tuple[str, str, str], list[ExamAnswer]] = {}
    for item in items:
        of.setdefault((item.model, item.exam, item.way), []).append(item)
    base = [(BASE, "", BASE)] if any(item.model == BASE for item in items) else []
    for system, row, model in [*base, *((entry.system, entry.row, entry.model) for entry in entries)]:
        for exam in asked:
            for way in exam.ways:
                own = of[model, exam.name, way.name]
                means = question_means(own, len(exam.prompts)).tolist()
                yield ResultAnswers(
                    seed,
                    system,
                    row,
                    exam.name,
                    "greedy" if way.name == "greedy" else "sampled",
                    tuple(None if math.isnan(value) else round(value, 4) for value in means),
                    float(np.mean([item.tokens for item in own])),
                    float(np.mean([item.is_cut_off for item in own])),
                )
