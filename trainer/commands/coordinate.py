"""`coevo coordinate RECIPE`: keeps a run going through a running service; needs COEVO_REDIS_URL."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from clients.client import AsyncClient, from_environment
from trainer.orchestration.coordinator import Coordinator
from trainer.orchestration.tracking import check_trackers, track
from trainer.queue.client import Queue
from trainer.queue.server import url_from_environment
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load, run_id

_TRACKED_S = 20.0
"""The longest wait at the end for trackers: they get the last events while the run waits for nothing else."""

log = logging.getLogger("coordinator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--tracking", type=Path, default=Path("runs"), metavar="DIR", help="where trackers keep their files [runs]"
    )


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every request
    url = url_from_environment(os.environ)
    recipe = load(arguments.recipe, arguments.set)
    check_trackers(recipe.tracking.to)
    return asyncio.run(coordinate(recipe, url, arguments.tracking))


async def coordinate(recipe: Recipe, url: str, folder: Path) -> int:
    service = from_environment(os.environ)
    run = run_id(recipe)
    async with AsyncClient(**service) as client:
        # A task of its own, so that a signal ends it where it waits and this function still closes what is open.
        task = asyncio.create_task(Coordinator(run, recipe, Queue(url), client).coordinate())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        log.info("coordinates %s", run)
        tracking = asyncio.create_task(track(recipe, service["url"], service["api_key"], folder))
        try:
            await task
            await asyncio.wait([tracking], timeout=_TRACKED_S)
        except asyncio.CancelledError:
            log.info("stopped; started again with the same recipe it goes on with %s", run)
        # A tracker that hangs or failed does not change how the run ended.
        tracking.cancel()
        await asyncio.wait([tracking])
    return 0
