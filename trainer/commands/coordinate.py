"""`coevo coordinate RECIPE`: keeps a run going through a running service; needs COEVO_REDIS_URL."""

import argparse
import asyncio
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from clients.client import AsyncClient, from_environment
from service import logs
from trainer.local.train import settings_of
from trainer.orchestration.coordinator import Coordinator
from trainer.orchestration.endings import status_of
from trainer.orchestration.trackers import check_trackers
from trainer.orchestration.tracking import track
from trainer.queue.client import Queue
from trainer.queue.server import url_from_environment
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load, run_id
from trainer.recipe.limits import limits

_TRACKED_S = 20.0
"""The longest wait at the end for trackers: they get the last events while the run waits for nothing else."""

log = logging.getLogger("coordinator")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument(
        "--tracking", type=Path, default=Path("runs"), metavar="DIR", help="where trackers keep their files [runs]"
    )


def run(arguments: argparse.Namespace) -> int:
    url = url_from_environment(os.environ)
    recipe = load(arguments.recipe, arguments.set)
    logs.set_up(run=run_id(recipe))
    check_trackers(recipe.tracking.to)

    def work() -> int:
        if asyncio.run(coordinate(recipe, url, arguments.tracking)):
            print("\n".join(next_commands(arguments.recipe, arguments.set, recipe)))
        return 0

    return status_of("coevo coordinate", work)


def next_commands(path: Path, changes: Sequence[str], recipe: Recipe) -> Iterator[str]:
    """What a person does with a finished run, while its service goes on."""
    store = Path(os.environ.get("COEVO_STORE") or "store")
    named = str(store) if (store / "store.json").is_file() else "STORE"  # the service may be on another machine
    yield "next, while the service runs:"
    yield f"  coevo eval {shlex.join([str(path), *settings_of(changes)])}"
    yield f"  coevo merge {named} --base {recipe.base.name} --out merged"


async def coordinate(recipe: Recipe, url: str, folder: Path) -> bool:
    """Whether the run is finished; else it was told to stop."""
    service = from_environment(os.environ)
    run = run_id(recipe)
    async with AsyncClient(**service, **limits(recipe).of_client) as client:
        # A task of its own, so that a signal ends it where it waits and this function still closes what is open.
        task = asyncio.create_task(Coordinator(run, recipe, Queue(url), client).coordinate())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        log.info("coordinates %s", run)
        tracking = asyncio.create_task(track(recipe, client, Queue(url), service, folder))
        is_finished = True
        try:
            await task
            await asyncio.wait([tracking], timeout=_TRACKED_S)
        except asyncio.CancelledError:
            log.info("stopped; started again with the same recipe it goes on with %s", run)
            is_finished = False
        # A tracker that hangs or failed does not change how the run ended.
        tracking.cancel()
        await asyncio.wait([tracking])
        if not tracking.cancelled() and (error := tracking.exception()):
            log.warning("tracking.to: ended before the run did: %s: %s", type(error).__name__, error)
    return is_finished
