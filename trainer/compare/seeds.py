"""The seeds of a comparison: trained group by group, examined one by one, read back as results.

Where systems have learning rates of their own (`rates`), a group is several runs, one for each rate.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from adapters.errors import UserError
from trainer.compare.answers import ResultAnswers, examine_seed, path_of, read_answers, read_merges
from trainer.compare.choices import Rates
from trainer.compare.rates import at_rate, folder_of, read_rates, systems_by_rate, tune
from trainer.compare.results import Measured, Results, measured_by, measured_in, results_of
from trainer.compare.standings import Standings
from trainer.data.held_out import held_out_data
from trainer.evaluation.exams import blind_level
from trainer.local.train import events_of, is_trained, run_processes, train
from trainer.plan.comparison import of_seeds
from trainer.plan.make import make_plan
from trainer.plan.results import Result, planned_results
from trainer.recipe import MiniatureData, Recipe
from trainer.recipe.file import write_resolved
from trainer.reporting.events import read_events
from trainer.reporting.progress import duration


@dataclass(frozen=True, slots=True)
class Part:
    """Systems that are one run."""

    recipe: Recipe
    folder: Path
    """It has the run; answers of all parts lie together."""
    rates: Rates | None = None
    """Of a part at a learning rate: results of systems that have another are not its."""


def make_seeds(recipe: Recipe, out: Path, together: int) -> None:
    """Trains the seeds of a recipe, so many together, and examines what was not examined yet."""
    assert recipe.comparison is not None
    parts = _parts(recipe, out)
    started, first = time.monotonic(), recipe.comparison.first_seed
    last = first + recipe.comparison.seeds - 1
    # By the answers in the folder: a seed that was stopped between its training and its exam is examined now.
    missing = [seed for seed in range(first, last + 1) if any(unanswered(part, out, seed) for part in parts)]
    done = 0
    for group in groups(missing, together):
        elapsed_s = time.monotonic() - started
        left = f", {duration(elapsed_s / done * (len(missing) - done))} left" if done else ""
        seeds = ", ".join(map(str, group))
        print(f"seed {seeds} of {first} to {last}, after {duration(elapsed_s)}{left}", flush=True)
        done += len(group)
        # Seed by seed all parts: what was made when somebody stops is whole seeds.
        for part in parts:
            _make_group(part, out, group)


def _parts(recipe: Recipe, out: Path) -> list[Part]:
    assert recipe.comparison is not None
    if len(recipe.comparison.rates) < 2:  # nothing to choose
        return [Part(recipe, out)]
    write_resolved(recipe, out)  # what a later command is held against
    rates = tune(recipe, out)
    return [
        Part(at_rate(recipe, rate, systems), folder_of(out, rate), rates)
        for rate, systems in systems_by_rate(recipe, rates)
    ]


def _make_group(part: Part, out: Path, seeds: Sequence[int]) -> None:
    """What is missing of these seeds in one part."""
    missing = {seed: results for seed in seeds if (results := unanswered(part, out, seed))}
    if not missing:
        return
    # A group may have gaps where seeds are done; they are in its plan, and cost nothing a second time.
    recipe = of_seeds(part.recipe, seeds[0], seeds[-1])
    with run_processes(part.folder, recipe) as processes:
        if not is_trained(part.folder, recipe):
            train(recipe, part.folder, processes)
        for seed, results in missing.items():
            examine_seed(recipe, out, seed, results, processes, part.folder / "store")


def unanswered(part: Part, out: Path, seed: int) -> list[Result]:
    """The results of this one seed that have not been examined."""
    answered = {(answers.system, answers.row) for answers in read_answers(path_of(out, seed))}
    lr, rates = part.recipe.optimiser.lr, part.rates
    return [
        result
        for result in planned_results(make_plan(of_seeds(part.recipe, seed, seed)))
        if (result.system, result.row) not in answered and (rates is None or rates.chosen[result.system] == lr)
    ]


def groups(seeds: Iterable[int], size: int) -> list[list[int]]:
    """The seeds in order, as many together as are trained at once."""
    ordered = sorted(seeds)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def gathered(recipe: Recipe, out: Path) -> Results:
    """What all seeds in the folder say, whichever were asked for this time."""
    paths = sorted((out / "answers").glob("seed-*.jsonl"))
    answers = [line for path in paths for line in read_answers(path)]
    standings = Standings(answers)
    if not standings.seeds:
        raise UserError(f"{out}: there is no answers/seed-0.jsonl; name the --out folder of a comparison")
    merges, rates = {seed: read_merges(out, seed) for seed in standings.seeds}, read_rates(out)
    measured = _measured(recipe, out, answers, rates)
    return results_of(recipe, standings, measured, blind_levels(recipe, merges), merges, rates)


def _measured(recipe: Recipe, out: Path, answers: Sequence[ResultAnswers], rates: Rates | None) -> Measured:
    """Measurements by the events; of a kept folder answers alone, for events are a thousand times as large."""
    runs = {out: (recipe, list(answers))}
    if rates:
        # Of each rate's run those that have it: another rate's experts may be trained there too.
        runs = {
            folder_of(out, rate): (at_rate(recipe, rate, ()), [line for line in answers if line.system in systems])
            for rate in sorted(set(rates.chosen.values()))
            if (systems := {system for system, of_system in rates.chosen.items() if of_system == rate})
        }
    if not all(events_of(folder, run).exists() for folder, (run, _) in runs.items()):
        return measured_in(out / "comparison.json")
    parts: list[Measured] = []
    for folder, (run, lines) in runs.items():
        part = measured_by(read_events(events_of(folder, run)), run, Standings(lines))
        systems = {line.system for line in lines}
        series = [point for point in part.series if point.system in systems]
        parts.append(replace(part, series=series, pulls=[pull for pull in part.pulls if pull.system in systems]))
    return Measured(
        {key: cost for part in parts for key, cost in part.spent.items()},
        [point for part in parts for point in part.series],
        [pull for part in parts for pull in part.pulls],
        [student for part in parts for student in part.students],
    )


def blind_levels(recipe: Recipe, seeds: Collection[int]) -> dict[str, float]:
    """The blind level of the exams of generated questions: the mean over the seeds, which have others each. It comes
    from the questions alone: tables are also made where the base is not."""
    levels: dict[str, float] = {}
    for name, capability in recipe.capabilities.items():
        data = held_out_data(capability)
        if isinstance(data, MiniatureData):
            count = min(recipe.evaluation.questions, data.size)
            levels[name] = fmean(blind_level(data, count, seed) for seed in seeds)
    return levels
