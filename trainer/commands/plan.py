"""`coevo plan RECIPE`: every step before anything runs, as a table, and what it all costs.

Tokens are upper bounds: prompts and completions of the recipe's longest.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adapters.names import BASE, Ref
from trainer.commands.doctor import shape_of_base
from trainer.doctor import memory
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, Segment, Step, impossible
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load

GB = 10**9


@dataclass(frozen=True, slots=True)
class Cost:
    """Of some steps."""

    steps: int = 0
    rollouts: int = 0
    generated: int = 0
    """Tokens, at most."""
    scored: int = 0
    """Tokens of completions that teacher and student score, at most."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.steps + other.steps,
            self.rollouts + other.rollouts,
            self.generated + other.generated,
            self.scored + other.scored,
        )


def cost(step: Step, recipe: Recipe) -> Cost:
    rollout = recipe.rollout
    own = rollout.prompts * rollout.group_size if step.capabilities else 0
    prompts, group_size = rollout.opd_batch
    others = prompts * group_size
    rollouts = own + others * (len(step.teachers) + len(step.negative))
    longest = rollout.max_completion_tokens
    return Cost(1, rollouts, rollouts * longest, 2 * others * len(step.teachers) * longest)


def total(steps: Sequence[Step], recipe: Recipe) -> Cost:
    """Equal steps are counted once and multiplied: a plan has thousands."""
    kinds = Counter((bool(step.capabilities), len(step.teachers), len(step.negative)) for step in steps)
    example = {(bool(step.capabilities), len(step.teachers), len(step.negative)): step for step in steps}
    found = Cost()
    for kind, count in kinds.items():
        one = cost(example[kind], recipe)
        found += Cost(count, one.rollouts * count, one.generated * count, one.scored * count)
    return found


def lines(made: Plan, recipe: Recipe, adapter_parameters: int) -> Iterator[tuple[str, ...]]:
    """A row for each segment and one for all of them."""
    for segment in made.segments:
        one = total(segment.steps, recipe)
        yield (
            segment.id,
            segment.kind,
            f"{segment.first + 1}-{segment.steps[-1].number}",
            ", ".join(segment.steps[0].capabilities) or "-",
            _teachers(segment),
            f"{one.rollouts:,}",
            f"{one.generated:,}",
            f"{one.scored:,}",
        )
    everything = total(list(made.steps), recipe)
    yield (
        "all", "", f"{everything.steps} steps", "", "", f"{everything.rollouts:,}", f"{everything.generated:,}",
        f"{everything.scored:,}",
    )  # fmt: skip
    branches = len(made.starts)
    ends = Counter(segment.branch for segment in made.segments)
    kept = memory.store_bytes(
        adapter_parameters,
        branches=branches,
        keep_last=recipe.budget.keep_last,
        phase_ends=max(ends.values(), default=0),
    )
    step = adapter_parameters * 12  # masters and two moments
    yield ("disk", "", f"{step / GB:.3g} GB a step", f"at most {kept / GB:.3g} GB kept", "", "", "", "")


def _teachers(segment: Segment) -> str:
    """Of the first step and, where teachers grow with it, of the last."""
    first, last = segment.steps[0], segment.steps[-1]
    shown = [
        f"{a.ref}" if a.ref == b.ref else f"{a.ref}..{b.ref.revision}"
        for a, b in zip(first.teachers, last.teachers, strict=True)
    ]
    return ", ".join([*shown, *(f"control on {name}" for name in first.negative)]) or "-"


HEADS = ("segment", "kind", "steps", "own data", "teachers", "rollouts", "generated <=", "scored <=")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    made = make_plan(recipe)
    forked = [Ref.parse(start.origin) for start in made.starts if start.origin != BASE]  # the store's to know
    problems = list(impossible(made, forked))
    assert not problems, problems
    adapter = memory.lora_parameters(shape_of_base(recipe), recipe.lora.rank)
    rows = list(lines(made, recipe, adapter))
    if not sys.stdout.isatty():
        for row in [HEADS, *rows]:
            print("\t".join(row).rstrip("\t"))
        return 0
    _show(recipe.name, rows)
    return 0


def _show(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, title=title, box=box.SIMPLE_HEAD)
    for column in table.columns[5:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
