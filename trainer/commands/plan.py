"""`coevo plan RECIPE`: every step before anything runs, as a table, and what it all costs.

Tokens are upper bounds: prompts and completions of the recipe's longest.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

from adapters.errors import UserError
from adapters.names import BASE, Ref
from trainer.commands.check import tell
from trainer.commands.doctor import column_warnings, shape_of_base
from trainer.doctor import memory
from trainer.doctor.fit import stored_bytes
from trainer.plan.bounds import kept_rollouts, record_bytes, too_long
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, Segment, Step, impossible
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load
from trainer.recipe.limits import limit_lines

HEADS = ("segment", "kind", "steps", "own data", "teachers", "rollouts", "generated <=", "scored <=")
GB = 10**9
"""A gigabyte as makers of disks count: the disk is what it is for. Memory is counted in GiB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--limits", action="store_true", help="show the limits that follow from the recipe, too")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    plan = make_plan(recipe)
    # Which revisions a store has only its service knows: here those that branches start from are taken as there.
    origins = [Ref.parse(start.origin) for start in plan.starts if start.origin != BASE]
    problems = list(impossible(plan, origins))
    assert not problems, problems
    rows = list(lines(plan, recipe, shape_of_base(recipe)))
    _print(rows, recipe.name)
    if arguments.limits:
        print(*limit_lines(recipe), sep="\n")
    if why := too_long(plan, recipe):  # after the table, which shows what is so much
        raise UserError(why)
    tell("plan", arguments.recipe, column_warnings(recipe))
    return 0


def _print(rows: Sequence[tuple[str, ...]], title: str) -> None:
    """A table on a terminal, else a line a row."""
    if not sys.stdout.isatty():
        for row in [HEADS, *rows]:
            print("\t".join(row).rstrip("\t"))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, title=title, box=box.SIMPLE_HEAD)
    for column in table.columns[HEADS.index("rollouts") :]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def lines(plan: Plan, recipe: Recipe, shape: memory.Shape) -> Iterator[tuple[str, ...]]:
    """A row for each segment, one for all of them, and two for the disk: revisions, and records of rollouts."""
    whole = Cost()
    for segment in plan.segments:
        segment_cost = sum((cost(step, recipe) for step in segment.steps), Cost())
        whole += segment_cost
        yield (
            segment.id,
            segment.kind,
            f"{segment.first + 1}-{segment.steps[-1].number}",
            ", ".join(segment.steps[0].capabilities) or "-",
            teachers_of(segment),
            *_numbers(segment_cost),
        )
    yield ("all", "", f"{whole.steps} steps", "", "", *_numbers(whole))
    stored = stored_bytes(recipe, shape, branches=len(plan.starts), phase_ends=plan.phase_ends)
    # In float32: the masters and Adam's two moments.
    step_bytes = memory.lora_parameters(shape, recipe.lora.rank) * 12
    yield ("disk", "", f"{step_bytes / GB:.3g} GB a step", f"at most {stored / GB:.3g} GB kept", "", "", "", "")
    largest, kept = max((record_bytes(step, recipe) for step in plan.steps), default=0), kept_rollouts(plan, recipe)
    steps = "all steps" if kept.steps is None else f"the last {kept.steps}"
    room = f"at most {kept.bytes / GB:.3g} GB kept: {steps}"
    yield ("rollouts", "", f"{largest / GB:.3g} GB a step", room, "", "", "", "")


def cost(step: Step, recipe: Recipe) -> Cost:
    """What a step costs, if every completion is as long as it may be."""
    rollout = recipe.rollout
    rewarded = rollout.prompts * rollout.group_size if step.capabilities else 0
    prompts, group_size = rollout.opd_batch
    distilled = prompts * group_size * len(step.teachers)
    rollouts = rewarded + distilled + prompts * group_size * len(step.negative)
    longest = rollout.max_completion_tokens
    # Twice: the teacher and the student score each completion, so that both numbers come from the same engine.
    return Cost(1, rollouts, rollouts * longest, 2 * distilled * longest)


def teachers_of(segment: Segment) -> str:
    """The teachers of the first step and, where they grow with it, of the last: `image@3..5`."""
    first, last = segment.steps[0], segment.steps[-1]
    teachers = [
        f"{a.ref}" if a.ref == b.ref else f"{a.ref}..{b.ref.revision}"
        for a, b in zip(first.teachers, last.teachers, strict=True)
    ]
    return ", ".join([*teachers, *(f"control on {name}" for name in first.negative)]) or "-"


def _numbers(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.rollouts:,}", f"{cost.generated:,}", f"{cost.scored:,}"
