"""The seeds of a comparison: trained group by group, examined one by one, read back as results.

Where `comparison.rates` has several learning rates, each is a folder `DIR/lr-RATE` with a run of its own. First every
system is trained in each of them on the tuning seed; then the reported seeds, each system where it did best. A system
is trained whole at its rate: its experts too.

    DIR/rates.json   the accuracy of every system at every rate, and its choice
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from adapters.errors import UserError
from trainer.compare.answers import ResultAnswers, examine_seed, path_of, read_answers, read_merges, scale_systems
from trainer.compare.choices import Rates, chosen_rates, is_system, system_accuracies
from trainer.compare.results import Measured, Results, measured_by, measured_in, results_of
from trainer.compare.standings import Standings
from trainer.data.held_out import held_out_data
from trainer.evaluation.exams import exams
from trainer.local.train import events_of, is_trained, run_processes, train
from trainer.plan.comparison import PAIRED, Result, of_seeds, planned_results
from trainer.plan.make import make_plan
from trainer.recipe import MiniatureData, Recipe
from trainer.recipe.file import write_resolved
from trainer.reporting.events import read_events
from trainer.reporting.percent import percent
from trainer.reporting.progress import duration


def make_seeds(recipe: Recipe, out: Path, together: int) -> None:
    """Trains the seeds of a recipe, so many together, and examines what was not examined yet."""
    config = recipe.comparison
    assert config is not None
    if len(config.rates) < 2:  # nothing to choose
        _make_seeds(recipe, out, out, together)
        return
    write_resolved(recipe, out)  # what a later command is held against
    rates = tune(recipe, out)
    for rate, systems in _systems_by_rate(recipe, rates):
        print(f"learning rate {rate:g}: {', '.join(systems) or 'experts'}", flush=True)
        part = _at_rate(recipe, rate, systems)
        _make_seeds(part, out, _folder(out, rate), together, rates)


def _make_seeds(recipe: Recipe, out: Path, folder: Path, together: int, rates: Rates | None = None) -> None:
    """`folder` has the run; `out` gets the answers."""
    assert recipe.comparison is not None
    started, first = time.monotonic(), recipe.comparison.first_seed
    last = first + recipe.comparison.seeds - 1
    # By the answers in the folder: a seed that was stopped between its training and its exam is examined now.
    missing = {seed: results for seed in range(first, last + 1) if (results := unanswered(recipe, out, seed, rates))}
    done = 0
    for group in groups(missing, together):
        elapsed_s = time.monotonic() - started
        left = f", {duration(elapsed_s / done * (len(missing) - done))} left" if done else ""
        seeds = ", ".join(map(str, group))
        print(f"seed {seeds} of {first} to {last}, after {duration(elapsed_s)}{left}", flush=True)
        done += len(group)
        # A group may have gaps where seeds are done; they are in its plan, and cost nothing a second time.
        group_recipe = of_seeds(recipe, group[0], group[-1])
        with run_processes(folder, group_recipe) as processes:
            if not is_trained(folder, group_recipe):
                train(group_recipe, folder, processes)
            for seed in group:
                examine_seed(group_recipe, out, seed, missing[seed], processes, folder / "store")


def unanswered(recipe: Recipe, out: Path, seed: int, rates: Rates | None = None) -> list[Result]:
    """The results of this one seed that have not been examined; with rates, those that have the recipe's."""
    answered = {(answers.system, answers.row) for answers in read_answers(path_of(out, seed))}
    plan = make_plan(of_seeds(recipe, seed, seed))
    return [
        result
        for result in planned_results(plan)
        if (result.system, result.row) not in answered
        and (rates is None or rates.chosen[result.system] == recipe.optimiser.lr)
    ]


# ---- learning rates ----


def tune(recipe: Recipe, out: Path) -> Rates:
    """Trains the tuning seed at every rate and chooses. A rate that was tried is not tried again."""
    config = recipe.comparison
    assert config is not None
    tried: dict[float, dict[str, float]] = {}
    for rate in config.rates:
        folder = _folder(out, rate)
        path = folder / "tuning.json"
        if not path.exists():
            print(f"learning rate {rate:g}, on tuning seed {config.tuning_seed}", flush=True)
            part = of_seeds(_at_rate(recipe, rate, config.systems), config.tuning_seed, config.tuning_seed)
            results = [result for result in planned_results(make_plan(part)) if is_system(result)]
            with run_processes(folder, part) as processes, tempfile.TemporaryDirectory(dir=folder) as name:
                if not is_trained(folder, part):
                    train(part, folder, processes)
                models = scale_systems(part, folder / "store", results, Path(name), processes)
            path.write_text(json.dumps(system_accuracies(models, results), indent=1) + "\n")
        tried[rate] = json.loads(path.read_text())
    rates = Rates(
        {system: {f"{rate:g}": tried[rate][system] for rate in tried} for system in tried[config.rates[0]]},
        chosen_rates(tried),
    )
    if (before := read_rates(out)) and before != rates:
        raise UserError(f"{out}: its rates were chosen among others; take another folder with --out")
    for system, accuracies in rates.tried.items():
        shown = ", ".join(f"{rate} {percent(accuracy)}" for rate, accuracy in accuracies.items())
        print(f"learning rate of {system}: {rates.chosen[system]:g}, by validation questions ({shown})", flush=True)
    (out / "rates.json").write_text(json.dumps(asdict(rates), indent=1) + "\n")
    return rates


def read_rates(out: Path) -> Rates | None:
    path = out / "rates.json"
    return Rates(**json.loads(path.read_text())) if path.exists() else None


def _systems_by_rate(recipe: Recipe, rates: Rates) -> Iterator[tuple[float, tuple[str, ...]]]:
    """What is trained at each rate that a system has."""
    assert recipe.comparison is not None
    systems = recipe.comparison.systems
    for rate in recipe.comparison.rates:
        chosen = {system for system, of_system in rates.chosen.items() if of_system == rate}
        asked = tuple(system for system in systems if system in chosen)
        is_pair_alone = PAIRED.issuperset(asked) and not PAIRED.issuperset(systems)
        # Experts and their merges come with whatever else is trained, but beside systems of the pair only two of them.
        if chosen - set(asked) and (not asked or is_pair_alone):
            yield rate, ()
        if asked:
            yield rate, asked


def _at_rate(recipe: Recipe, rate: float, systems: tuple[str, ...]) -> Recipe:
    assert recipe.comparison is not None
    optimiser = recipe.optimiser.model_copy(update={"lr": rate})
    comparison = recipe.comparison.model_copy(update={"systems": systems, "rates": ()})
    return recipe.model_copy(update={"optimiser": optimiser, "comparison": comparison})


def _folder(out: Path, rate: float) -> Path:
    return out / f"lr-{rate:g}"


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
    """By the events; a folder that was kept has its answers alone, for events are a thousand times as large."""
    runs = {out: (recipe, list(answers))}
    if rates:
        # Of each rate's run those that have it: another rate's experts may be trained there too.
        runs = {
            _folder(out, rate): (_at_rate(recipe, rate, ()), [line for line in answers if line.system in systems])
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


def blind_levels(recipe: Recipe, seeds: Iterable[int]) -> dict[str, float]:
    """The blind level of the miniature's exams: the mean over the seeds, which have questions of their own."""
    names = [name for name, config in recipe.capabilities.items() if isinstance(held_out_data(config), MiniatureData)]
    levels: dict[str, list[float]] = {}
    for seed in seeds:
        for exam in exams(recipe, only=names, draw=seed):
            assert exam.blind is not None
            levels.setdefault(exam.name, []).append(exam.blind)
    return {name: fmean(by_seed) for name, by_seed in levels.items()}
