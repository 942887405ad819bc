"""`coevo doctor`: what this machine has, what is missing and how to get it; with a recipe, whether it fits.

The machine is looked at in `trainer.doctor.machine`; whether a recipe fits it says `trainer.doctor.fit`.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from adapters.errors import UserError
from trainer.data.base import base_of
from trainer.doctor import memory
from trainer.doctor.cards import ONE_CARD, Spread, spread_of
from trainer.doctor.fit import dtype_rows, memory_rows, parts_of, served_row, shape_in, store_row, stored_bytes
from trainer.doctor.machine import Card, MachineFact, found_cards, gib, imported_row, machine_rows
from trainer.local.bounds import bound_facts
from trainer.plan.make import make_plan
from trainer.recipe import DatasetData, Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load

_DEEP_IMPORTS = ("torch", "torchvision", "vllm")
"""What is installed as builds that may not fit each other, which only an import tells."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, help="does this recipe fit?", is_optional=True)
    parser.add_argument(
        "--card-gib",
        action="append",
        default=[],
        type=float,
        metavar="GIB",
        help="plan for a card of this size instead of the cards found; twice: the engine's and the workers'",
    )
    add_spread_arguments(parser)
    parser.add_argument("--store", type=Path, default=Path("store"), metavar="DIR", help="where revisions will lie")
    parser.add_argument("--deep", action="store_true", help="import torch, torchvision and vLLM; takes seconds")


def run(arguments: argparse.Namespace) -> int:
    if arguments.set and not arguments.recipe:
        raise UserError("--set: there is no recipe to set it in; name one: coevo doctor RECIPE --set ...")
    recipe = load(arguments.recipe, arguments.set) if arguments.recipe else None
    cards = found_cards()
    rows = list(machine_rows(cards, arguments.store))
    if arguments.deep:
        rows += [imported_row(name) for name in _DEEP_IMPORTS]
    parts: Sequence[memory.MemoryPart] = ()
    if recipe is not None:
        planned = [Card("planned", int(size * memory.GIB)) for size in arguments.card_gib] or cards
        try:
            shape = shape_of_base(recipe)
        except UserError as error:
            # No failure: a base that was not downloaded yet is none.
            rows.append(MachineFact("WARN", "recipe fits", "unknown", str(error)))
        else:
            spread = spread_from(arguments, recipe)
            parts = parts_of(recipe, shape, on_gpu=bool(planned), spread=spread)
            host = Card("this machine's free memory", psutil.virtual_memory().available)
            rows += memory_rows(recipe, shape, parts, planned or [host], spread if planned else ONE_CARD)
            rows += cards_rows(spread, cards, arguments.cards_per_host)
            plan = make_plan(recipe)
            stored = stored_bytes(recipe, shape, branches=len(plan.starts), phase_ends=plan.phase_ends)
            rows += [store_row(stored, arguments.store), served_row(recipe, shape)]
            rows += bound_facts(plan, recipe, arguments.store.parent / "runs")
        rows += dtype_rows(recipe, planned)
        rows += column_warnings(recipe)
    show(rows, parts)
    return 1 if any(row.status == "FAIL" for row in rows) else 0


def add_spread_arguments(parser: argparse.ArgumentParser) -> None:
    """What no recipe says: who works for a run, it may be told later."""
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="plan for so many workers [1]")
    help = "with so many processes each, by torchrun [1]"
    parser.add_argument("--processes", type=_count, default=1, metavar="N", help=help)
    parser.add_argument("--cards-per-host", type=_count, default=8, metavar="N", help="that a host has [8]")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"take 1 or more, not {text}")
    return int(text)


def spread_from(arguments: argparse.Namespace, recipe: Recipe) -> Spread:
    return spread_of(
        recipe,
        workers=arguments.workers,
        processes=arguments.processes,
        cards_per_host=arguments.cards_per_host,
    )


def cards_rows(spread: Spread, cards: Sequence[Card], cards_per_host: int) -> Iterator[MachineFact]:
    """Whether this host has the cards, if they are to be on one."""
    if not cards or spread.is_shared:
        return
    finding, hosts = f"{spread}: {spread.cards} cards", spread.hosts(cards_per_host)
    if hosts > 1:
        yield MachineFact("OK", "cards", f"{finding} on {hosts} hosts of {cards_per_host}")
    elif spread.cards > len(cards):
        remedy = "lower engine.data_parallel, engine.tensor_parallel or --processes, or take another host"
        yield MachineFact("FAIL", "cards", f"{finding}, {len(cards)} here", remedy)
    else:
        yield MachineFact("OK", "cards", finding)


def shape_of_base(recipe: Recipe) -> memory.Shape:
    """The shape of a base that is known, lies here, or was downloaded before."""
    # Before any look at the disk: a plan must be possible where the base is not.
    return memory.KNOWN_SHAPES.get(recipe.base.name) or shape_in(base_of(recipe))


def column_warnings(recipe: Recipe) -> list[MachineFact]:
    """What is wrong with the first rows of data sets that lie here. A warning: they may be for another machine."""
    if not any(isinstance(data, DatasetData) for data in recipe.data.values()):
        return []
    from trainer.local.preflight import column_facts  # takes a second, for what reads data sets

    return [replace(fact, status="WARN") for fact in column_facts(recipe)]


def show(rows: Sequence[MachineFact], parts: Sequence[memory.MemoryPart]) -> None:
    """Tables on a terminal, else a line a row."""
    if sys.stdout.isatty():
        _show_tables(rows, parts)
        return
    for row in rows:
        print(f"{row.status:<4}  {row.subject}: {row.finding}" + (f" -> {row.remedy}" if row.remedy else ""))
    for part in parts:
        print(f"memory  {part.process}: {part.name}: {gib(part.bytes)} GiB ({part.note})")
    if parts:
        print(f"memory  sum: {gib(memory.total(parts))} GiB")


def _show_tables(rows: Sequence[MachineFact], parts: Sequence[memory.MemoryPart]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
    checks = Table(box=box.SIMPLE_HEAD)
    for column in ("", "what", "found", "remedy"):
        checks.add_column(column, overflow="fold")
    for row in rows:
        checks.add_row(
            f"[{colours[row.status]}]{row.status}[/]", escape(row.subject), escape(row.finding), escape(row.remedy)
        )
    console = Console()
    console.print(checks)
    if parts:
        sums = Table("process", "memory", "GiB", "how", box=box.SIMPLE_HEAD, show_footer=True)
        for part in parts:
            sums.add_row(part.process, part.name, gib(part.bytes), part.note)
        sums.columns[1].footer, sums.columns[2].footer = "sum", gib(memory.total(parts))
        sums.columns[2].justify = "right"
        console.print(sums)
