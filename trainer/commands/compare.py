"""`coevo compare RECIPE --seeds N`: the paper's tables, with intervals, from one command.

Seed by seed, all systems as one plan on one engine and one worker, then every result examined. `--together` takes
several seeds into one plan, which keeps a machine busier; the first of them is done later.
What is there is not made again: after Ctrl-C, or with more `--seeds` or `comparison.systems`, go on with `--resume`.

    DIR/answers/seed-0.jsonl   the reward of every result for every question: what all tables are made of
    DIR/comparison.json        tables, verdicts, costs, dynamics
    DIR/report.html            the same to read, with pictures, in one file
    DIR/tables.md              its tables for a document
    DIR/store, DIR/runs, ...   as of `coevo run`

The recipe is one of `copd`; its hub and the first other capability are the pair of the two-branch tables. Tune on the
miniature's validation questions and report on others: capabilities.NAME.held_out says which are asked.
"""

import argparse
import json
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from adapters.errors import UserError
from service.concurrency import Stopped
from trainer.compare.answers import examine_seed, path_of, read_answers, read_merges
from trainer.compare.report import markdown, write_report
from trainer.compare.results import Results, as_json, results_of
from trainer.data.base import base_of
from trainer.data.held_out import held_out_data
from trainer.evaluation.exams import exams
from trainer.local.train import check_folder, events_of, is_trained, run_processes, settings_of, train
from trainer.orchestration.tracking import check_trackers
from trainer.plan.comparison import Result, of_seeds, planned_results
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig, MiniatureData, Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load
from trainer.reporting.events import read_events


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--seeds", type=int, metavar="N", help="how many [comparison.seeds of the recipe]")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="seeds trained at once [1]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything lies [out/compare-NAME]")
    parser.add_argument("--resume", action="store_true", help="go on with what is there, or add seeds to it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")


def run(arguments: argparse.Namespace) -> int:
    recipe = of_comparison(load(arguments.recipe, arguments.set), arguments.seeds)
    check_trackers(recipe.tracking.to)
    if arguments.together < 1:
        raise UserError(f"--together {arguments.together}: take 1 or more")
    base_of(recipe)  # what is wrong with it is told before anything is written
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"{arguments.json}: there is no folder {arguments.json.parent}; make it first")
    out = arguments.out or Path("out") / f"compare-{recipe.name}"
    check_folder(out, recipe, resume=arguments.resume)  # seeds and systems are no part of what it compares
    assert recipe.comparison is not None
    try:
        _make(recipe, out, arguments.together)
    except Stopped:
        seeds = [f"--seeds={recipe.comparison.seeds}", f"--together={arguments.together}"]
        words = [str(arguments.recipe), *settings_of(arguments.set), *seeds, f"--out={out}", "--resume"]
        print(f"stopped; to go on: coevo compare {shlex.join(words)}")
        return 130
    results = gathered(recipe, out)
    text = json.dumps(as_json(results), indent=1, allow_nan=False) + "\n"
    for path in filter(None, (out / "comparison.json", arguments.json)):
        path.write_text(text)
    (out / "tables.md").write_text("\n".join(markdown(results)) + "\n")
    report = write_report(results, out / "report.html")
    print(f"{report} has tables and pictures, {out / 'comparison.json'} the numbers, {out / 'answers'} every answer")
    return 0


def of_comparison(recipe: Recipe, seeds: int | None) -> Recipe:
    """The recipe with its comparison, of so many seeds if that was said; refused if it cannot be compared."""
    if recipe.method.kind != "copd" or recipe.method.rhythm == "adaptive":
        raise UserError(
            f"{recipe.name}: a comparison is made from a recipe of copd with a fixed rhythm; take such a one"
        )
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: take 1 or more")
    if len(recipe.capabilities) < 2:
        raise UserError(f"{recipe.name}: has one capability; a comparison needs two or more")
    config = recipe.comparison or ComparisonConfig()
    if "mixed3" in config.systems and recipe.rollout.prompts < len(recipe.capabilities):
        raise UserError(
            f"rollout.prompts: {recipe.rollout.prompts} are fewer than the {len(recipe.capabilities)} capabilities of "
            "mixed RLVR; take one for each at least"
        )
    # Only the miniature has a split beside the one that is reported on, so that a scale is not chosen by the test.
    rest = [name for name, capability in recipe.capabilities.items() if capability.data.type != "miniature"]
    if config.scales and rest:
        raise UserError(f"comparison.scales: {', '.join(rest)} has no validation questions; set merge.scale instead")
    changes = {} if seeds is None else {"seeds": seeds}
    return recipe.model_copy(update={"comparison": config.model_copy(update=changes)})


def _make(recipe: Recipe, out: Path, together: int) -> None:
    """Trains the seeds group by group, and examines what was not examined yet."""
    assert recipe.comparison is not None
    started, first = time.monotonic(), recipe.comparison.first_seed
    last = first + recipe.comparison.seeds - 1
    # By the answers in the folder: a seed that was stopped between its training and its exam is examined now.
    missing = {seed: results for seed in range(first, last + 1) if (results := unanswered(recipe, out, seed))}
    for group in groups(missing, together):
        minutes = (time.monotonic() - started) / 60
        print(f"seed {', '.join(map(str, group))} of {first} to {last}, after {minutes:.0f} min", flush=True)
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
    answers = [line for path in paths for line in read_answers(path)]
    merges = {seed: read_merges(out, seed) for seed in sorted({line.seed for line in answers})}
    return results_of(recipe, answers, read_events(events_of(out, recipe)), blind_levels(recipe, merges), merges)


def blind_levels(recipe: Recipe, seeds: Iterable[int]) -> dict[str, float]:
    """The blind level of the miniature's exams: the mean over the seeds, which have questions of their own."""
    names = [name for name, config in recipe.capabilities.items() if isinstance(held_out_data(config), MiniatureData)]
    levels: dict[str, list[float]] = {}
    for seed in seeds:
        for exam in exams(recipe, only=names, draw=seed):
            assert exam.blind is not None
            levels.setdefault(exam.name, []).append(exam.blind)
    return {name: fmean(by_seed) for name, by_seed in levels.items()}
