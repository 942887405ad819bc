"""`coevo eval RECIPE --adapter base --adapter text@40`: accuracy of models on the recipe's held-out questions.

It asks a running service (COEVO_SERVICE_URL). `coevo eval RUN`, the folder of a run, starts one for as long as it asks:
with the base, the newest revision of every branch, and the merge where there is one. Gains are over the first model
named, paired by question, and every interval is one of 95 %. `--json` has the table, `--items` every answer, a line of
JSON each.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest
from adapters.names import BASE, MERGED, Ref
from clients.client import AsyncClient, ServiceAddress, ServiceError, from_environment
from trainer.evaluation.exams import (
    ExamAnswer,
    ExamResult,
    as_lines,
    decoder,
    exam_results,
    examine,
    exams,
    mean_results,
    pinned,
)
from trainer.local.examiner import ADAPTER, flags_of, stacked_rank
from trainer.local.processes import SERVICE, ProcessGroup
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load
from trainer.recipe.limits import limits
from trainer.reporting.progress import Progress
from trainer.reporting.tables import as_json, lines, show
from trainer.rewards.pool import HALF_THE_CORES, RewardPool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, help="a recipe, or the folder of a run")
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME",
        help="base, text, text@40 or merged; repeat it [base and branches]",
    )
    parser.add_argument(
        "--exam", action="append", metavar="NAME", help="a capability or a benchmark; repeat it [all of the recipe]"
    )
    parser.add_argument("--questions", type=int, metavar="N", help="at most so many of each set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file as well")
    parser.add_argument("--items", type=Path, metavar="FILE", help="write every answer to this file")


def run(arguments: argparse.Namespace) -> int:
    folder: Path | None = arguments.recipe if arguments.recipe.is_dir() else None
    recipe = load(folder / "recipe.json" if folder else arguments.recipe, arguments.set)
    merged = [MERGED] if folder and stacked_rank(folder / ADAPTER) else []
    names = arguments.adapter or [BASE, *recipe.branches, *merged]
    for name in names:
        Ref.parse(name)  # a name that cannot be one is told before a service is started
    if arguments.questions is not None and arguments.questions < 1:
        raise UserError(f"--questions {arguments.questions}: nothing would be asked; take 1 or more")
    for file in filter(None, (arguments.json, arguments.items)):
        if not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    # Half the cores judge; the engine has the others.
    with RewardPool(num_children=HALF_THE_CORES) as pool, _service(folder) as service:
        try:
            results, items = asyncio.run(_measure(recipe, names, arguments, pool, service))
        except ServiceError as error:
            raise UserError(str(error)) from None
    means = mean_results(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(recipe, results, means), indent=1, allow_nan=False) + "\n")
    if arguments.items:
        arguments.items.write_text(as_lines(items))
    if sys.stdout.isatty():
        show(recipe.name, results, means)
    else:
        for line in lines(results, means):
            print("\t".join(line))
    return 0


@contextmanager
def _service(folder: Path | None) -> Generator[ServiceAddress]:
    """A service that runs; of a run's folder its own, for as long as the block."""
    if folder is None:
        yield from_environment(os.environ)
        return
    adapter = folder / ADAPTER
    rank = stacked_rank(adapter)
    flags = flags_of(folder, rank, {MERGED: adapter} if rank else None)
    with ProcessGroup(folder / "logs", {"OMP_NUM_THREADS": "1"}) as processes:
        url = processes.serve(SERVICE, str(folder / "recipe.json"), "--port=0", *flags)
        yield {**from_environment(os.environ), "url": url}


async def _measure(
    recipe: Recipe,
    names: Sequence[str],
    arguments: argparse.Namespace,
    pool: RewardPool,
    service: ServiceAddress,
) -> tuple[list[ExamResult], list[ExamAnswer]]:
    digest = await asyncio.to_thread(base_digest, locate(recipe.base.name))
    async with AsyncClient(**service, base=digest, **limits(recipe).of_client) as client:
        # Pinned: a branch that learns meanwhile is measured as it is now, in all exams alike.
        models = await pinned(client, names)
        # In a thread: a data set may take a minute to open, and the client looks after its connections meanwhile.
        questions = await asyncio.to_thread(exams, recipe, arguments.questions, arguments.exam)
        longest, decode = recipe.rollout.max_completion_tokens, decoder(recipe)
        with Progress("examining", "questions") as progress:
            items = await examine(
                client, pool, models, questions,
                seed=recipe.seed, max_tokens=longest, decode=decode, tell=progress.show,
            )  # fmt: skip
    return exam_results(items, questions), items
