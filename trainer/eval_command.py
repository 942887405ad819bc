"""`coevo eval RECIPE --adapter base --adapter text@40`: accuracy of models on the recipe's held-out questions.

It asks a running service (COEVO_SERVICE_URL). Gains are over the first model named, paired by question, and every
interval is one of 95 %. `--json` has the table, `--items` every answer, a line of JSON each.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest
from adapters.names import Ref
from clients.client import AsyncClient, ServiceError, from_environment
from trainer.evaluate import Item, Result, examine, exams, overall, pinned, results
from trainer.recipe import Recipe
from trainer.recipe.file import load
from trainer.rewards.pool import RewardPool
from trainer.scoreboard import as_json, lines, show


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
