"""`coevo compare RECIPE --seeds N`: the paper's tables, with intervals, from one command.

Seed by seed, all systems as one plan on one engine and one worker, then every result examined. `--together` takes
several seeds into one plan, which keeps a machine busier; the first of them is done later.
What is there is not made again: after Ctrl-C, or with more `--seeds` or `comparison.systems`, go on with `--resume`.

    DIR/answers/seed-0.jsonl   the reward of every result for every question: what all tables are made of
    DIR/items/seed-0.jsonl     every answer in full, to read
    DIR/comparison.json        tables, verdicts, costs, dynamics
    DIR/report.html            the same to read, with pictures, in one file
    DIR/tables.md              its tables for a document
    DIR/store, DIR/runs, ...   as of `coevo run`

`--from DIR` makes the tables of a finished comparison again, from its answers and `comparison.json`.

The recipe is one of `copd`; its hub and the first other capability are the pair of the two-branch tables. Tune on the
miniature's validation questions and report on others: capabilities.NAME.held_out says which are asked.
"""

import argparse
import json
import shlex
from pathlib import Path

from adapters.errors import UserError
from service.concurrency import Stopped
from trainer.commands.base import make_at_first_use
from trainer.commands.check import add_unchecked, check, is_refused
from trainer.local.train import check_folder, settings_of
from trainer.recipe import ComparisonConfig, MiniatureData, Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--seeds", type=int, metavar="N", help="how many [comparison.seeds of the recipe]")
    parser.add_argument("--together", type=int, default=1, metavar="N", help="seeds trained at once [1]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything lies [out/compare-NAME]")
    parser.add_argument("--resume", action="store_true", help="go on with what is there, or add seeds to it")
    parser.add_argument(
        "--from", type=Path, metavar="DIR", dest="source", help="trains nothing: tables from its answers"
    )
    add_unchecked(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file as well")


def run(arguments: argparse.Namespace) -> int:
    recipe = of_comparison(load(arguments.recipe, arguments.set), arguments.seeds)
    if arguments.together < 1:
        raise UserError(f"--together {arguments.together}: take 1 or more")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"{arguments.json}: there is no folder {arguments.json.parent}; make it first")
    out = arguments.out or Path("out") / f"compare-{recipe.name}"
    if arguments.source is None:
        check_folder(out, recipe, resume=arguments.resume)  # seeds and systems are no part of what it compares
        make_at_first_use(recipe.base.name)
        print("checking the recipe, its data and this machine", flush=True)
        if is_refused("compare", arguments, check(recipe, out)):
            return 2
    out.mkdir(parents=True, exist_ok=True)
    assert recipe.comparison is not None
    # Not at the top: they import torch and transformers, and what is wrong above is told at once.
    from trainer.compare.report import markdown, notes, write_report
    from trainer.compare.results import as_json
    from trainer.compare.seeds import gathered, make_seeds

    if arguments.source is None:
        try:
            make_seeds(recipe, out, arguments.together)
        except Stopped:
            seeds = [f"--seeds={recipe.comparison.seeds}", f"--together={arguments.together}"]
            words = [str(arguments.recipe), *settings_of(arguments.set), *seeds, f"--out={out}", "--resume"]
            print(f"stopped; to go on: coevo compare {shlex.join(words)}")
            return 130
    answers = arguments.source or out
    results = gathered(recipe, answers)
    text = json.dumps(as_json(results), indent=1, allow_nan=False) + "\n"
    for path in filter(None, (out / "comparison.json", arguments.json)):
        path.write_text(text)
    (out / "tables.md").write_text("\n".join(markdown(results)) + "\n")
    report = write_report(results, out / "report.html")
    for note in notes(results):
        print(note)
    print(
        f"{report} has tables and pictures, {out / 'comparison.json'} the numbers, {answers / 'answers'} every answer"
    )
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
    # Only generated questions have a split beside the one that is reported on: the test must not choose a scale.
    rest = [name for name, config in recipe.capabilities.items() if not isinstance(config.data, MiniatureData)]
    if config.scales and rest:
        raise UserError(f"comparison.scales: {', '.join(rest)} has no validation questions; set merge.scale instead")
    changes = {} if seeds is None else {"seeds": seeds}
    return recipe.model_copy(update={"comparison": config.model_copy(update=changes)})
