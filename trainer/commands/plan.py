"""`coevo plan RECIPE`: every step before anything runs, as a table, and what it all costs.

Tokens are upper bounds: prompts and completions of the recipe's longest.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator

from adapters.names import BASE, Ref
from trainer.commands.doctor import shape_of_base
from trainer.doctor import memory
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, Segment, Step, impossible
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load

HEADS = ("segment", "kind", "steps", "own data", "teachers", "rollouts", "generated <=", "scored <=")
GB = 10**9
"""A gigabyte as makers of disks count: the disk is what it is for. Memory is counted in GiB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    plan = make_plan(recipe)
    # Which revisions a store has only its service knows: here those that branches start from are taken as there.
    origins = [Ref.parse(start.origin) for start in plan.starts if start.origin != BASE]
    problems = list(impossible(plan, origins))
    assert not problems, problems
    rows = list(lines(plan, recipe, memory.lora_parameters(shape_of_base(recipe), recipe.lora.rank)))
    if not sys.stdout.isatty():
        for row in [HEADS, *rows]:
            print("\t".join(row).rstrip("\t"))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, title=recipe.name, box=box.SIMPLE_HEAD)
    for column in table.columns[HEADS.index("rollouts") :]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return 0


def lines(plan: Plan, recipe: Recipe, adapter_parameters: int) -> Iterator[tuple[str, ...]]:
    """A row for each segment, one for all of them, and one for the disk."""
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
    # Each segment ends a phase of its branch, and ends of phases are never retired.
    phase_ends = Counter(segment.branch for segment in plan.segments)
    stored = memory.store_bytes(
        adapter_parameters,
        branches=len(plan.starts),
        keep_last=recipe.budget.keep_last,
        phase_ends=max(phase_ends.values(), default=0),
    )
    step_bytes = adapter_parameters * 12  # in float32: the masters and Adam's two moments
    yield ("disk", "", f"{step_bytes / GB:.3g} GB a step", f"at most {stored / GB:.3g} GB kept", "", "", "", "")


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
