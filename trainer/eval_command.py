"""`coevo eval RECIPE --adapter base --adapter text@40`: accuracy of models on the recipe's held-out questions.

It asks a running service (COEVO_SERVICE_URL). Gains are over the first model named, paired by question, and every
interval is one of 95 %. `--json` has the table, `--items` every answer, a line of JSON each.
"""

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest
from adapters.names import Ref
from clients.client import AsyncClient, ServiceError, from_environment
from trainer.evaluate import Item, Overall, Result, examine, exams, overall, pinned, results
from trainer.intervals import Interval
from trainer.recipe import Recipe
from trainer.recipe.file import load
from trainer.rewards.pool import RewardPool

HEADS = (
    "exam", "way", "model", "accuracy", "low", "high", "gain", "gain low", "gain high", "blind", "questions",
    "unscorable", "cut off", "tokens",
)  # fmt: skip
MEAN = "mean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME",
        help="base, text, text@40 or merged; repeat it [base and branches]",
    )
    parser.add_argument("--questions", type=int, metavar="N", help="at most so many of each set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file as well")
    parser.add_argument("--items", type=Path, metavar="FILE", help="write every answer to this file")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    names = arguments.adapter or ["base", *recipe.branches]
    for name in names:
        Ref.parse(name)
    if arguments.questions is not None and arguments.questions < 1:
        raise UserError(f"--questions {arguments.questions}: nothing would be asked; take 1 or more")
    for file in filter(None, (arguments.json, arguments.items)):
        if not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    with RewardPool(num_children=max(1, (os.cpu_count() or 2) // 2)) as pool:
        try:
            found, items = asyncio.run(_measure(recipe, names, arguments.questions, pool))
        except ServiceError as error:
            raise UserError(str(error)) from None
    rows = overall(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(recipe, found, rows), indent=1, allow_nan=False) + "\n")
    if arguments.items:
        arguments.items.write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    if sys.stdout.isatty():
        show(recipe.name, found, rows)
    else:
        for line in lines(found, rows):
            print("\t".join(line))
    return 0


async def _measure(
    recipe: Recipe, names: Sequence[str], most: int | None, pool: RewardPool
) -> tuple[list[Result], list[Item]]:
    from functools import partial

    base = locate(recipe.base.name)
    service = from_environment(os.environ)
    url = str(service["url"])
    digest = await asyncio.to_thread(base_digest, base)
    async with AsyncClient(url, api_key=service["api_key"], base=digest) as client:
        if not await client.ready():
            raise UserError(f"{url}: no service is ready there; start one (coevo serve) or set COEVO_SERVICE_URL")
        models = await pinned(client, names)
        asked = await asyncio.to_thread(exams, recipe, most)

        from transformers import AutoTokenizer

        decode: Any = partial(AutoTokenizer.from_pretrained(base).decode, skip_special_tokens=True)
        longest = recipe.rollout.max_completion_tokens
        items = await examine(client, pool, models, asked, seed=recipe.seed, max_tokens=longest, decode=decode)
    return results(items, asked), items


# ---- telling ----


def as_json(recipe: Recipe, found: Sequence[Result], rows: Sequence[Overall]) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "results": [
            asdict(one) | {"accuracy": _interval(one.accuracy), "gain": _interval(one.gain)} for one in found
        ],
        "mean": [asdict(one) | {"accuracy": _interval(one.accuracy), "gain": _interval(one.gain)} for one in rows],
    }  # fmt: skip


def _interval(one: Interval) -> dict[str, float | None]:
    mean = None if math.isnan(one.mean) else one.mean
    return {"mean": mean, "low": one.low, "high": one.high}


def lines(found: Sequence[Result], rows: Sequence[Overall]) -> Iterator[tuple[str, ...]]:
    """For programs: a line for each result, shares as numbers from 0 to 1."""
    yield HEADS
    for one in found:
        yield (
            one.exam, one.way, one.model, *_cells(one.accuracy), *_cells(one.gain), _number(one.blind),
            str(one.questions), _number(one.unscorable), _number(one.cut_off), f"{one.tokens:.1f}",
        )  # fmt: skip
    for row in rows:
        yield (MEAN, row.way, row.model, *_cells(row.accuracy), *_cells(row.gain), "-", "-", "-", "-", "-")


def _cells(one: Interval) -> tuple[str, str, str]:
    return _number(one.mean), _number(one.low), _number(one.high)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def show(title: str, found: Sequence[Result], rows: Sequence[Overall]) -> None:
    """For people: models downwards, exams across, in percent; the gain over the first model behind each accuracy."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys((one.exam, one.way) for one in found))
    means = list(dict.fromkeys(row.way for row in rows))
    models = list(dict.fromkeys(one.model for one in found))
    named = [((one.model, one.exam, one.way), one) for one in found]
    named_means = [((row.model, MEAN, row.way), row) for row in rows]
    cells = {
        key: _percent(one.accuracy) + ("" if one.model == models[0] else f"\n{_percent(one.gain, '+')}")
        for key, one in (*named, *named_means)
    }
    columns += [(MEAN, way) for way in means]
    blind = {(one.exam, one.way): one.blind for one in found}
    table = Table("accuracy in %", *(f"{exam}\n{way}" for exam, way in columns), title=title, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in models:
        table.add_row(model, *(cells[model, *column] for column in columns))
    if any(level is not None for level in blind.values()):
        levels = (blind.get(column) for column in columns)
        table.add_row("looks at nothing", *("-" if level is None else f"{100 * level:.1f}" for level in levels))
    Console().print(table)


def _percent(one: Interval, sign: str = "-") -> str:
    if math.isnan(one.mean):
        return "not judged"
    half = "" if one.half_width is None else f" +-{100 * one.half_width:.1f}"
    return f"{100 * one.mean:{sign}.1f}{half}"
