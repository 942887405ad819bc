"""The seeds of a comparison: trained group by group, examined one by one, read back as results."""

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from adapters.errors import UserError
from trainer.compare.answers import examine_seed, path_of, read_answers, read_merges
from trainer.compare.results import Results, measured_by, measured_in, results_of
from trainer.compare.standings import Standings
from trainer.data.held_out import held_out_data
from trainer.evaluation.exams import exams
from trainer.local.train import events_of, is_trained, run_processes, train
from trainer.plan.comparison import Result, of_seeds, planned_results
from trainer.plan.make import make_plan
from trainer.recipe import MiniatureData, Recipe
from trainer.reporting.events import read_events
from trainer.reporting.progress import duration


def make_seeds(recipe: Recipe, out: Path, together: int) -> None:
    """Trains the seeds of a recipe, so many together, and examines what was not examined yet."""
    assert recipe.comparison is not None
    started, first = time.monotonic(), recipe.comparison.first_seed
    last = first + recipe.comparison.seeds - 1
    # By the answers in the folder: a seed that was stopped between its training and its exam is examined now.
    missing = {seed: results for seed in range(first, last + 1) if (results := unanswered(recipe, out, seed))}
    done = 0
    for group in groups(missing, together):
        elapsed_s = time.monotonic() - started
        left = f", {duration(elapsed_s / done * (len(missing) - done))} left" if done else ""
        seeds = ", ".join(map(str, group))
        print(f"seed {seeds} of {first} to {last}, after {duration(elapsed_s)}{left}", flush=True)
        done += len(group)
        # A group may have gaps where seeds are done; they are in its plan, and cost nothing a second time.
        group_recipe = of_seeds(recipe, group[0], group[-1])
        with run_processes(out, group_recipe) as processes:
            if not is_trained(out, group_recipe):
                train(group_recipe, out, processes)
            for seed in group:
                examine_seed(group_recipe, out, seed, missing[seed], processes)


def unanswered(recipe: Recipe, out: Path, seed: int) -> list[Result]:
    """The results of this one seed that have not been examined."""
    answered = {(answers.system, answers.row) for answers in read_answers(path_of(out, seed))}
    plan = make_plan(of_seeds(recipe, seed, seed))
    return [result for result in planned_results(plan) if (result.system, result.row) not in answered]


def groups(seeds: Iterable[int], size: int) -> list[list[int]]:
    """The seeds in order, as many together as are trained at once."""
    ordered = sorted(seeds)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def gathered(recipe: Recipe, out: Path) -> Results:
    """What all seeds in the folder say, whichever were asked for this time."""
    paths = sorted((out / "answers").glob("seed-*.jsonl"))
    standings = Standings([line for path in paths for line in read_answers(path)])
    if not standings.seeds:
        raise UserError(f"{out}: there is no answers/seed-0.jsonl; name the --out folder of a comparison")
    merges = {seed: read_merges(out, seed) for seed in standings.seeds}
    # A folder that was kept has its answers alone: events are a thousand times as large.
    events = events_of(out, recipe)
    measured = (
        measured_by(read_events(events), recipe, standings) if events.exists() else measured_in(out / "comparison.json")
    )
    return results_of(recipe, standings, measured, blind_levels(recipe, merges), merges)


def blind_levels(recipe: Recipe, seeds: Iterable[int]) -> dict[str, float]:
    """The blind level of the miniature's exams: the mean over the seeds, which have questions of their own."""
    names = [name for name, config in recipe.capabilities.items() if isinstance(held_out_data(config), MiniatureData)]
    levels: dict[str, list[float]] = {}
    for seed in seeds:
        for exam in exams(recipe, only=names, draw=seed):
            assert exam.blind is not None
            levels.setdefault(exam.name, []).append(exam.blind)
    return {name: fmean(by_seed) for name, by_seed in levels.items()}
