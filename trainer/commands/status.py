"""`coevo status`: which runs there are, how far each branch is, who works on it, what it waits for.

It asks the service (COEVO_SERVICE_URL) and, where COEVO_REDIS_URL is set, the queue. Left out: what happened before
(`GET /runs/ID/events`), and the jobs themselves (`coevo jobs`).
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

from adapters.errors import UserError
from clients.client import Client, ServiceError, from_environment
from service.schemas import RunInfo
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided
from trainer.plan.steps import Plan, is_there
from trainer.queue.client import Queue, Waiting
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import Recipe

HEADS = ("run", "branch", "step", "reward", "worker", "waits for")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="of this run alone")
    parser.add_argument("--all", action="store_true", help="runs that are finished, too")


def run(arguments: argparse.Namespace) -> int:
    service = from_environment(os.environ)
    try:
        with Client(str(service["url"]), api_key=service["api_key"], timeout_s=10) as client:
            found = client.runs()
    except ServiceError as error:
        raise UserError(str(error)) from None
    chosen = [one for one in found if one.id == arguments.run] if arguments.run else found
    if arguments.run and not chosen:
        raise UserError(f"{arguments.run}: no such run; there are {', '.join(one.id for one in found) or 'none'}")
    url = os.environ.get(URL_VARIABLE)
    queue = Queue(url) if url else None
    print("\t".join(HEADS))
    for one in chosen:
        if one.state != "finished" or arguments.all or arguments.run:
            for row in rows(one, queue):
                print("\t".join(row))
    for job in queue.dead() if queue else []:
        print(f"failed for good: {job.job}: {job.error}\n  mend that, then: coevo jobs retry {job.branch}")
    return 0


def rows(one: RunInfo, queue: Queue | None) -> Iterator[tuple[str, ...]]:
    heads = {name: branch.head for name, branch in one.branches.items()}
    waiting = queue.waiting(heads) if queue else {}
    made = _plan(queue, one.id) if queue else None
    for name, branch in one.branches.items():
        reward = "-" if branch.reward is None else f"{branch.reward:.3f}"
        last = "?" if branch.last is None else str(branch.last)
        yield one.id, name, f"{branch.head}/{last}", reward, _worker(waiting.get(name)), _missing(made, name, heads)


def _plan(queue: Queue, run: str) -> Plan | None:
    record: Mapping[str, Any] | None = queue.runs().get(run)
    if record is None:
        return None
    recipe = Recipe.model_validate(record["recipe"])
    is_adaptive = recipe.method.rhythm == "adaptive"
    return make_plan(recipe, decided(queue.agreed(run), recipe.method.rlvr_steps) if is_adaptive else ())


def _worker(waiting: Waiting | None) -> str:
    return waiting.worker if waiting is not None and waiting.worker else "-"


def _missing(made: Plan | None, branch: str, heads: Mapping[str, int]) -> str:
    """Revisions that the next step reads and that nobody has made."""
    if made is None:
        return "-"
    step = next((step for step in made.steps if step.branch == branch and step.number == heads[branch] + 1), None)
    refs = [teacher.ref for teacher in step.teachers] if step else []
    return ", ".join(str(ref) for ref in refs if not is_there(ref, heads)) or "-"
