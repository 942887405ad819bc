"""`coevo check RECIPE`: what a person can get wrong about a recipe and its data, found before an engine starts.

Exit code 2 and the list of all problems with their remedies; 0 and a short table when there is none. `coevo run` and
`coevo compare` ask the same before they start anything, `coevo filter` what is of its own rows. Data sets of the hub
are fetched, as training would.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adapters.errors import UserError
from trainer.commands.doctor import show
from trainer.doctor.machine import MachineFact
from trainer.orchestration.trackers import check_trackers
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the run will lie [out/NAME]")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    facts = check(recipe, arguments.out or Path("out") / recipe.name)
    if has_problems(facts):
        tell("check", arguments.recipe, facts)
        return 2
    show(facts, ())
    return 0


def check(recipe: Recipe, out: Path) -> list[MachineFact]:
    """All that is known of a recipe before it runs."""
    # Here, for it takes a second: `coevo check --help` and a wrong key need no data sets.
    from trainer.local.preflight import preflight

    facts = preflight(recipe, out)
    try:
        check_trackers(recipe.tracking.to)
    except UserError as error:
        facts.append(MachineFact("FAIL", "tracking.to", str(error).removeprefix("tracking.to: ")))
    return facts


def add_unchecked(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unchecked", action="store_true", help="start although `coevo check` finds problems")


def is_refused(command: str, arguments: argparse.Namespace, facts: Sequence[MachineFact]) -> bool:
    """Whether a command must not start, which is told, and so are warnings. `--unchecked` lets it."""
    tell(command, arguments.recipe, facts)
    return has_problems(facts) and not arguments.unchecked


def has_problems(facts: Sequence[MachineFact]) -> bool:
    return any(fact.status == "FAIL" for fact in facts)


def tell(command: str, recipe: Path, facts: Sequence[MachineFact]) -> None:
    """Problems first, then warnings, a line each; nothing of what is well."""
    problems, warnings = ([_line(fact) for fact in facts if fact.status == status] for status in ("FAIL", "WARN"))
    if len(problems) == 1:  # a list of it would be a line longer
        print(f"coevo {command}: {problems[0]}", file=sys.stderr)
    elif problems:
        print(f"coevo {command}: {recipe}: {len(problems)} problems", file=sys.stderr)
        print(*(f"  {problem}" for problem in problems), sep="\n", file=sys.stderr)
    for warning in warnings:
        print(f"coevo {command}: warning: {warning}", file=sys.stderr)


def _line(fact: MachineFact) -> str:
    return f"{fact.subject}: {fact.finding}" + (f"; {fact.remedy}" if fact.remedy else "")
