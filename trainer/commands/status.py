"""`coevo status`: which runs there are, how far each branch is, who works on it, what it waits for.

It asks the service (COEVO_SERVICE_URL) and, where COEVO_REDIS_URL is set, the queue. Left out: what happened before
(`GET /runs/ID/events`), and the jobs themselves (`coevo jobs`).
"""

import argparse
import asyncio
import os
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.errors import UserError
from adapters.names import Ref
from clients.client import AsyncClient, ServiceError, from_environment
from service.schemas import RunInfo
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided
from trainer.plan.steps import Plan, missing_teachers
from trainer.queue.client import Queue
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import Recipe

HEADS = ("run", "branch", "step", "reward", "worker", "waits for")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="of this run alone")
    parser.add_argument("--all", action="store_true", help="runs that are finished, too")


def run(arguments: argparse.Namespace) -> int:
    async def read_runs() -> list[RunInfo]:
        # Ten seconds, not the client's ten minutes: a person waits for this.
        async with AsyncClient(**from_environment(os.environ), timeout_s=10) as client:
            return await client.runs()

    url = os.environ.get(URL_VARIABLE)
    queue = Queue(url) if url else None
    failed = queue.dead() if queue else []  # first: a wrong password needs no service to be told
    try:
        all_runs = asyncio.run(read_runs())
    except ServiceError as error:
        raise UserError(str(error)) from None
    runs = [run for run in all_runs if arguments.run in (None, run.id)]
    if arguments.run and not runs:
        raise UserError(f"{arguments.run}: no such run; there are {', '.join(run.id for run in all_runs) or 'none'}")
    print("\t".join(HEADS))
    for run in runs:
        if run.state != "finished" or arguments.all or arguments.run:
            for row in rows(run, queue):
                print("\t".join(row))
            for branch in run.branches.values():
                if branch.notice:
                    print(branch.notice)
    for job in failed:
        print(f"failed for good: {job.job}: {job.error}\n  mend that, then: coevo jobs retry {job.branch}")
    return 0


def rows(run: RunInfo, queue: Queue | None) -> Iterator[tuple[str, ...]]:
    heads = {name: branch.head for name, branch in run.branches.items()}
    waiting = queue.waiting(heads) if queue else {}
    # The run's recipe is the queue's: the service knows what happened, not what is to come.
    plan = _plan_of(queue, run.id) if queue else None
    for name, branch in run.branches.items():
        reward = "-" if branch.reward is None else f"{branch.reward:.3f}"
        last = "?" if branch.last is None else str(branch.last)
        worker = (waiting[name].worker if name in waiting else None) or "-"
        next_steps = [step for step in plan.steps if step.makes == Ref(name, branch.head + 1)] if plan else []
        missing = ", ".join(str(ref) for step in next_steps for ref in missing_teachers(step, heads))
        yield run.id, name, f"{branch.head}/{last}", reward, worker, missing or "-"


def _plan_of(queue: Queue, run: str) -> Plan | None:
    """The plan of a run that the queue knows, with what is decided of an adaptive rhythm."""
    record: Mapping[str, Any] | None = queue.runs().get(run)
    if record is None:
        return None
    recipe = Recipe.model_validate(record["recipe"])
    is_adaptive = recipe.method.rhythm == "adaptive"
    return make_plan(recipe, decided(queue.agreed(run), recipe.method.rlvr_steps) if is_adaptive else ())
