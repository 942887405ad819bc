"""`coevo plan RECIPE`: every step before anything runs, as a table, and what it all costs.

Tokens are upper bounds: prompts and completions of the recipe's longest. `--card` makes hours of them, `--price` money.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from adapters.errors import UserError
from adapters.names import BASE, Ref
from trainer.commands.check import tell
from trainer.commands.doctor import add_spread_arguments, column_warnings, shape_of_base, spread_from
from trainer.doctor import memory, price
from trainer.doctor.cards import Spread
from trainer.doctor.fit import memory_rows, parts_of, stored_bytes
from trainer.doctor.machine import Card, MachineFact, gib
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
    parser.add_argument("--card", choices=list(price.CARDS), help="tell memory and hours on cards of this kind")
    parser.add_argument("--price", type=float, metavar="X", help="what an hour of one costs: tell that, too")
    add_spread_arguments(parser)
    parser.add_argument("--limits", action="store_true", help="show the limits that follow from the recipe, too")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    if arguments.price is not None and arguments.card is None:
        raise UserError(f"--price {arguments.price:g}: of an hour of which card? name it with --card")
    if arguments.price is not None and not 0 < arguments.price < float("inf"):
        raise UserError(f"--price {arguments.price:g}: take what an hour costs, more than 0")
    if arguments.card is not None and recipe.base.dtype == "float32":
        raise UserError(f"--card {arguments.card}: knows the rates of bfloat16; add --set base.dtype=bfloat16")
    spread = spread_from(arguments, recipe)
    plan = make_plan(recipe)
    # Which revisions a store has only its service knows: here those that branches start from are taken as there.
    origins = [Ref.parse(start.origin) for start in plan.starts if start.origin != BASE]
    problems = list(impossible(plan, origins))
    assert not problems, problems
    shape = shape_of_base(recipe)
    rows = list(lines(plan, recipe, shape))
    _print(rows, recipe.name)
    if arguments.limits:
        print(*limit_lines(recipe), sep="\n")
    if why := too_long(plan, recipe):  # after the table, which shows what is so much
        raise UserError(why)
    warnings = column_warnings(recipe)
    if arguments.card is not None:
        card = price.CARDS[arguments.card]
        print(*price_lines(plan, recipe, shape, arguments.card, arguments.price, spread), sep="\n")
        print(*card_lines(recipe, shape, card, spread, arguments.cards_per_host), sep="\n")
        print(f"Sources: data sheets; {price.SOURCE}; trainer/doctor/price.py")
        warnings += memory_warnings(recipe, shape, card, spread)
    tell("plan", arguments.recipe, warnings)
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
    step_bytes = memory.lora_parameters(shape, recipe.lora.rank, recipe.lora.modules) * 12
    yield ("disk", "", f"{step_bytes / GB:.3g} GB a step", f"at most {stored / GB:.3g} GB kept", "", "", "", "")
    largest, records = max((record_bytes(step, recipe) for step in plan.steps), default=0), kept_rollouts(plan, recipe)
    steps = "all steps" if records.steps is None else f"the last {records.steps}"
    room = f"at most {records.bytes / GB:.3g} GB kept: {steps}"
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


def groups_of(plan: Plan, recipe: Recipe) -> Counter[price.Group]:
    """The prompts of all steps with their completions, and how many there are of each kind."""
    rollout, (prompts, group_size) = recipe.rollout, recipe.rollout.opd_batch
    rewarded = price.Group(rollout.max_prompt_tokens, rollout.max_completion_tokens, rollout.group_size, teachers=0)
    control = replace(rewarded, size=group_size)
    taught = replace(control, teachers=1)
    groups = Counter[price.Group]()
    # Teachers have a group each: every one of them is asked with prompts of its own.
    for step in plan.steps:
        groups[rewarded] += rollout.prompts if step.capabilities else 0
        groups[taught] += prompts * len(step.teachers)
        groups[control] += prompts * len(step.negative)
    return groups


def price_lines(
    plan: Plan, recipe: Recipe, shape: memory.Shape, name: str, hourly: float | None, spread: Spread
) -> Iterator[str]:
    """The hours on cards of a kind, with where each number comes from."""
    card, most = price.CARDS[name], recipe.rollout.prompts * recipe.rollout.group_size
    engine = price.Engine(min(recipe.engine.max_num_seqs, most), recipe.engine.kv_cache_gib)
    taken = price.hours(
        groups_of(plan, recipe),
        shape,
        card,
        engine,
        rank=recipe.lora.rank,
        updates=recipe.loss.updates_per_batch,
        spread=spread,
    )
    each = "" if spread.cards == 1 else " each"
    cost = "" if hourly is None else f", {taken.total * hourly * spread.cards:,.2f} at {hourly:g} an hour{each}"
    count = "one" if spread.cards == 1 else str(spread.cards)
    origin = "measured on an H100" if name == price.MEASURED else "scaled from an H100"
    share, bandwidth = f"{100 * price.SHARE:.1f} % of {card.flops / 1e12:,.0f} TFLOP/s", card.bandwidth / 1e12
    yield f"about {taken.total:,.1f} hours on {count} {card.name}{cost}"
    yield f"{taken.updates:10,.1f}  updates, {share}: {origin}"
    yield f"{taken.scoring:10,.1f}  scores by teachers and students, the same share: not measured"
    yield f"{taken.sampling:10,.1f}  sampling, {bandwidth:.3g} TB/s of memory: at best, not measured"
    yield "Completions are at their longest, nothing overlaps, cards share work evenly."


def card_lines(
    recipe: Recipe, shape: memory.Shape, card: price.DataSheet, spread: Spread, cards_per_host: int
) -> Iterator[str]:
    """Where everything lies, and how full each card is."""
    parts = parts_of(recipe, shape, on_gpu=True, spread=spread)
    taken = {
        process: memory.total([part for part in parts if part.process == process]) for process in ("service", "worker")
    }
    hosts = spread.hosts(cards_per_host)
    yield (
        f"{spread}: {spread.cards} of {cards_per_host} cards"
        if hosts == 1
        else (f"{spread}: {spread.cards} cards on {hosts} hosts of {cards_per_host}")
    )
    if spread.is_shared:
        taken = {"both together": sum(taken.values())}
    for process, size in taken.items():
        yield f"{gib(size):>10}  GiB of {card.gib:g} on each card: {process}"


def memory_warnings(recipe: Recipe, shape: memory.Shape, card: price.DataSheet, spread: Spread) -> list[MachineFact]:
    """That it does not fit, which a plan leaves to `coevo doctor`: hours on a card that is too small mean nothing."""
    parts = parts_of(recipe, shape, on_gpu=True, spread=spread)
    facts = memory_rows(recipe, shape, parts, [Card(card.name, int(card.gib * memory.GIB))], spread)
    return [replace(fact, status="WARN") for fact in facts if fact.status == "FAIL"]


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
