"""A worker's process: finds its run, equips itself, makes steps, ends with a status that a supervisor can use.

    python -m trainer.worker --branch video            # repeat it, or give `all`
    torchrun --nproc-per-node 4 -m trainer.worker --branch all

It works for one run, as the queue has its recipe, and ends when its branches have come to their plan's end. SIGTERM
finishes the update under way, publishes it and hands over; a second one ends at once. Exit status: `endings`.
"""

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest
from clients.client import AsyncClient, from_environment
from clients.parser import Parser
from service import logs
from service.concurrency import Stopped, cancelled_by
from service.processes import share_arenas
from trainer.data.base import base_of
from trainer.loop import gather_batch
from trainer.orchestration.deadline import in_time
from trainer.orchestration.endings import status_of
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.replay import replay
from trainer.orchestration.scheduler import Run, StepScheduler, retry_while_away
from trainer.orchestration.setup import capabilities_of, make_context, make_learner, open_training_sets
from trainer.orchestration.watchdog import Patience, Watchdog
from trainer.plan.make import make_plan
from trainer.queue.client import LEASE_S, Queue
from trainer.queue.server import url_from_environment
from trainer.recipe import Recipe
from trainer.recipe.limits import limits
from trainer.recipe.serving import check_service
from trainer.rewards.pool import HALF_THE_CORES, RewardPool
from trainer.update.ranks import Ranks, joined

ALL = "all"

log = logging.getLogger("worker")


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    share_arenas()
    return status_of("worker", lambda: advance(arguments))


def advance(arguments: argparse.Namespace) -> int:
    logs.set_up()
    url = url_from_environment(os.environ)
    with joined() as ranks:
        if not ranks.leads:
            return follow(arguments, ranks)
        with unique_name(arguments.name) as (name, lock):
            return asyncio.run(work(arguments, name, lock, url, ranks))


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m trainer.worker", description="Advances branches of a run.")
    parser.add_argument(
        "--branch", action="append", required=True, metavar="NAME", help="a branch to work on, or all; may be repeated"
    )
    parser.add_argument("--name", help="of this worker; under the same name it takes its own leases back at once")
    parser.add_argument("--run", metavar="ID", help="the run to work for; by default the first that has the branches")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 [cuda where there is one]")
    parser.add_argument("--lease", type=float, default=LEASE_S, metavar="SECONDS", help="how long a lease lasts [30]")
    hung = "when a step without progress is given up [by the recipe's lengths]"
    parser.add_argument("--hung", type=float, metavar="SECONDS", help=hung)
    parser.add_argument("--replay", type=Path, metavar="DIR", help="learn from the rollouts recorded in runs/ID again")
    return parser.parse_args(words)


async def work(arguments: argparse.Namespace, name: str, lock: str, url: str, ranks: Ranks) -> int:
    """Rank 0: finds the run, makes ready what its steps need, makes them."""
    signals = StopSignals()
    queue = Queue(url, lease_s=arguments.lease, lock=lock)
    with RewardPool(num_children=HALF_THE_CORES) as pool:
        try:
            run, branches = await cancelled_by(signals.stop, find_run(queue, arguments.run, arguments.branch))
            logs.set_up(run=run.id, worker=name)
            recipe, base = run.recipe, base_of(run.recipe)
            if recipe.worker.shard and ranks.count == 1:
                raise UserError(
                    "worker.shard: one process has nobody to share the base with; start two or more: torchrun "
                    "--nproc-per-node 2 -m trainer.worker ..., or set worker.shard to false"
                )
            digest = await asyncio.to_thread(base_digest, base)
            steps = [step for step in run.plan.steps if step.branch in branches]
            training_sets = open_training_sets(recipe, base, capabilities_of(steps))
            for capability, training_set in training_sets.items():
                await check_fingerprint(queue, run.id, capability, training_set.prompts.fingerprint)
            # Before the learner, which is of no use with the wrong service, and takes the longest to load.
            await cancelled_by(signals.stop, see_service(recipe, digest))
        except Stopped:
            ranks.from_first(None)
            return 0

        ranks.from_first(recipe.model_dump_json())
        learner = make_learner(recipe, base, digest, arguments.device, ranks)

        async with AsyncClient(**from_environment(os.environ), base=digest, **limits(recipe).of_client) as client:
            # A connection of its own: the thread renews leases while the queue's other calls wait.
            heartbeat = Heartbeat(Queue(url, lease_s=arguments.lease, lock=lock), name)
            heartbeat.start()
            watchdog = Watchdog(
                Queue(url, lease_s=arguments.lease),
                heartbeat,
                run.id,
                name,
                Patience.of(recipe, *client.longest_s) if arguments.hung is None else Patience.in_all(arguments.hung),
                done=lambda: client.answered + learner.packs,
            )
            watchdog.start()
            scheduler = StepScheduler(
                run,
                branches,
                name=name,
                queue=queue,
                heartbeat=heartbeat,
                watchdog=watchdog,
                context=make_context(recipe, base, client, pool, training_sets),
                learner=learner,
                gather=in_time(
                    partial(replay, arguments.replay) if arguments.replay else gather_batch, recipe.budget.step_hours
                ),
            )
            signals.then(scheduler.stop)
            log.info("%s works for %s on %s", name, run.id, ", ".join(branches))
            try:
                await scheduler.run()
            finally:
                heartbeat.end()
                watchdog.end()
                learner.stop()
    is_told = signals.stop.is_set()
    done = f"{run.id}: its branches are done; coevo status says how far the others are"
    log.info("%s", "stopped, everything handed over" if is_told else done)
    return 0


def follow(arguments: argparse.Namespace, ranks: Ranks) -> int:
    """The other processes of a torchrun: they do what rank 0 does, and end when it says so."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun passes it on to all of them
    if (text := ranks.from_first(None)) is not None:
        recipe = Recipe.model_validate_json(text)
        base = locate(recipe.base.name)
        make_learner(recipe, base, base_digest(base), arguments.device, ranks).follow()
    return 0


@contextmanager
def unique_name(name: str | None) -> Generator[tuple[str, str]]:
    """The worker's name for as long as it lives, and the lock that it has it by. No two on one machine have the same,
    so that a lease under both is that worker's own; one that died is replaced by the next, which takes its leases back.
    """
    host = socket.gethostname().lower()
    candidates = [name] if name else [f"{host}-{number}" for number in range(1, 1000)]
    for candidate in candidates:
        # A lock and not the file's existence: the kernel gives it back however the process ends.
        file = (Path(tempfile.gettempdir()) / f"coevo-worker-{candidate}.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        with file:
            # Drawn and not a host's name: two machines, or two containers on one, may have one name.
            file.seek(0)
            if not (lock := file.read()):
                lock = uuid.uuid4().hex
                file.write(lock)
                file.flush()
            yield candidate, lock
            return
    raise UserError(f"--name {name}: a worker of that name runs on this machine; take another name")


async def find_run(queue: Queue, run_id: str | None, words: Sequence[str]) -> tuple[Run, list[str]]:
    """Waits until there is a run with these branches. Raises `Stopped` where the one that is wanted is finished."""
    has_said = False
    while True:
        for id, record in (await retry_while_away(queue.runs)).items():
            if run_id not in (None, id):
                continue
            if record["state"] == "running":
                recipe = Recipe.model_validate(record["recipe"])
                run = Run(id, recipe, make_plan(recipe))
                branches = [start.branch for start in run.plan.starts]
                if run_id or ALL in words or set(words) <= set(branches):
                    return run, chosen_branches(words, branches, id)
            elif run_id:
                log.info("%s is %s", id, record["state"])
                raise Stopped
        if not has_said:
            log.info("waits for a run with %s", ", ".join(words))
            has_said = True
        await asyncio.sleep(0.5)


async def see_service(recipe: Recipe, base: str) -> None:
    """Waits for the service. A UserError if it is not the recipe's, or wants another key."""
    async with AsyncClient(**from_environment(os.environ)) as client:
        check_service(await client.adapters(), recipe, base)


def chosen_branches(words: Sequence[str], branches: Sequence[str], run_id: str) -> list[str]:
    if ALL in words:
        return list(branches)
    for word in words:
        if word not in branches:
            raise UserError(f"--branch {word}: {run_id} has no such branch; it has {', '.join(branches)}")
    return list(dict.fromkeys(words))


async def check_fingerprint(queue: Queue, run_id: str, capability: str, fingerprint: str) -> None:
    """The first worker of a run says what its data is; every other must have the same, or draws would differ."""
    agreed = await retry_while_away(lambda: queue.agree(run_id, f"data:{capability}", fingerprint))
    if agreed != fingerprint:
        raise UserError(
            f"the data of {capability} is not what the other workers of {run_id} have ({fingerprint[:12]} here, "
            f"{agreed[:12]} there); give every worker the same files"
        )


class StopSignals:
    """SIGTERM and SIGINT: the first asks, the second ends at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._then: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def then(self, action: Callable[[], None]) -> None:
        """What is done at the first signal; at once, if it has come already."""
        self._then = action
        if self.stop.is_set():
            action()

    def _on_signal(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        log.info("stops after the update under way; once more to stop at once")
        self.stop.set()
        self._then()


if __name__ == "__main__":
    sys.exit(main())
