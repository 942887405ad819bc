"""A worker's process: finds its run, equips itself, works its shift, ends with a status that a supervisor can use.

    python -m trainer.worker --branch video            # repeat it, or give `all`
    torchrun --nproc-per-node 4 -m trainer.worker --branch all

It works for one run, as the queue has its recipe, and ends when its branches have come to their plan's end. SIGTERM
finishes the update under way, publishes it and hands over; a second one ends at once. Exit status: 0 the plan is done
or it was told to stop, 2 what it was given cannot be used, 69 the service or the queue was away for too long (start it
again), 70 something unforeseen.

Left out: the work itself (`shift`), and who starts workers again when they die.
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
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest
from clients.client import AsyncClient, ServiceError, from_environment
from trainer.data.base import base_of
from trainer.loop import Batch, StepContext, gather
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.replay import replay
from trainer.orchestration.scheduler import Run, StepScheduler, cancelled_by, retry_while_away
from trainer.plan.make import make_plan
from trainer.plan.steps import Step
from trainer.queue.client import LEASE_S, Queue, QueueAwayError
from trainer.queue.server import url_from_environment
from trainer.recipe import Recipe
from trainer.recipe.serving import check_service
from trainer.update.ranks import Ranks, joined

ALL = "all"
UNAVAILABLE, UNFORESEEN = 69, 70

log = logging.getLogger("worker")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--branch", action="append", required=True, metavar="NAME", help="a branch to work on, or all; may be repeated"
    )
    parser.add_argument("--name", help="of this worker; under the same name it takes its own leases back at once")
    parser.add_argument("--run", metavar="ID", help="the run to work for; by default the first that has the branches")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 [cuda where there is one]")
    parser.add_argument("--lease", type=float, default=LEASE_S, metavar="SECONDS", help="how long a lease lasts [30]")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="learn from the rollouts recorded in runs/ID again")


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    for noisy in ("httpx", "httpcore", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    url = url_from_environment(os.environ)
    with joined() as ranks:
        if not ranks.leads:
            return _follow(arguments, ranks)
        try:
            with _name(arguments) as name:
                return asyncio.run(_lead(arguments, name, url, ranks))
        except QueueAwayError as error:
            print(f"worker: {error}", file=sys.stderr)
            return UNAVAILABLE
        except ServiceError as error:
            print(f"worker: {error}", file=sys.stderr)
            return UNAVAILABLE if error.status in (None, 429, 503) else 2


@contextmanager
def _name(arguments: argparse.Namespace) -> Generator[str]:
    """The worker's, for as long as it lives: no two on one machine have the same, and one that died is replaced
    by the next to start."""
    host = socket.gethostname().lower()
    names = [arguments.name] if arguments.name else [f"{host}-{number}" for number in range(1, 1000)]
    for name in names:
        file = (Path(tempfile.gettempdir()) / f"coevo-worker-{name}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        with file:
            yield name
            return
    raise UserError(f"--name {arguments.name}: a worker of that name runs on this machine; take another name")


async def _lead(arguments: argparse.Namespace, name: str, url: str, ranks: Ranks) -> int:
    from trainer.orchestration.setup import capabilities_of, make_context, make_learner, open_training_sets
    from trainer.rewards.pool import HALF_THE_CORES, RewardPool

    stop = _Stop()
    queue = Queue(url, lease_s=arguments.lease)
    with RewardPool(num_children=HALF_THE_CORES) as pool:
        found = await cancelled_by(stop.event, _find_run(queue, arguments.run, arguments.branch))
        if found is None:
            ranks.from_first(None)
            return 0
        run, branches = found
        base, recipe = base_of(run.recipe), run.recipe
        digest = await asyncio.to_thread(base_digest, base)
        data = open_training_sets(recipe, base, capabilities_of(s for s in run.plan.steps if s.branch in branches))
        for capability, one in data.items():
            await _check_fingerprint(queue, run.id, capability, one.prompts.fingerprint)
        ranks.from_first(recipe.model_dump_json())
        learner = make_learner(recipe, base, digest, arguments.device, ranks)
        service = from_environment(os.environ)
        async with AsyncClient(str(service["url"]), api_key=service["api_key"], base=digest) as client:
            check_service(await client.adapters(), recipe)
            arena = make_context(recipe, base, client, pool, data)
            pulse = Heartbeat(Queue(url, lease_s=arguments.lease), name)
            pulse.start()
            shift = StepScheduler(
                run,
                branches,
                name=name,
                queue=queue,
                pulse=pulse,
                arena=arena,
                learner=learner,
                gather=partial(_replay, arguments.replay, arena) if arguments.replay else partial(gather, arena=arena),
            )
            stop.then(shift.stop)
            log.info("%s works for %s on %s", name, run.id, ", ".join(branches))
            try:
                await shift.work()
            finally:
                pulse.end()
                learner.stop()
    log.info("%s", "stopped, everything handed over" if stop.is_set else f"{run.id}: its branches are done")
    return 0


def _follow(arguments: argparse.Namespace, ranks: Ranks) -> int:
    """The other processes of a torchrun: they do what rank 0 does, and end when it says so."""
    from trainer.orchestration.setup import make_learner

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun passes it on to all of them
    if (text := ranks.from_first(None)) is not None:
        recipe = Recipe.model_validate_json(text)
        base = locate(recipe.base.name)
        make_learner(recipe, base, base_digest(base), arguments.device, ranks).follow()
    return 0


async def _replay(folder: Path, arena: StepContext, step: Step) -> Batch:
    return await asyncio.to_thread(replay, folder, step, arena)


async def _find_run(queue: Queue, wanted: str | None, words: Sequence[str]) -> tuple[Run, list[str]] | None:
    """Waits until there is one. None: the one that is wanted is finished."""
    has_said = False
    while True:
        for id, record in (await retry_while_away(queue.runs)).items():
            if wanted not in (None, id):
                continue
            if record["state"] == "running":
                recipe = Recipe.model_validate(record["recipe"])
                run = Run(id, recipe, make_plan(recipe))
                known = [start.branch for start in run.plan.starts]
                if wanted or ALL in words or set(words) <= set(known):
                    return run, _chosen(words, known, id)
            elif wanted:
                log.info("%s is %s", id, record["state"])
                return None
        if not has_said:
            log.info("waits for a run with %s", ", ".join(words))
            has_said = True
        await asyncio.sleep(0.5)


def _chosen(words: Sequence[str], known: Sequence[str], run: str) -> list[str]:
    if ALL in words:
        return list(known)
    for word in words:
        if word not in known:
            raise UserError(f"--branch {word}: {run} has no such branch; it has {', '.join(known)}")
    return list(dict.fromkeys(words))


async def _check_fingerprint(queue: Queue, run: str, capability: str, fingerprint: str) -> None:
    agreed = await retry_while_away(lambda: queue.agree(run, f"data:{capability}", fingerprint))
    if agreed != fingerprint:
        raise UserError(
            f"the data of {capability} is not what the other workers of {run} have ({fingerprint[:12]} here, "
            f"{agreed[:12]} there); give every worker the same files"
        )


class _Stop:
    """SIGTERM and SIGINT: the first asks, the second ends at once."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self._then: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    @property
    def is_set(self) -> bool:
        return self.event.is_set()

    def then(self, what: Callable[[], None]) -> None:
        self._then = what
        if self.is_set:
            what()

    def _on_signal(self, number: int) -> None:
        if self.is_set:
            os._exit(128 + number)
        log.info("stops after the update under way; once more to stop at once")
        self.event.set()
        self._then()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="worker", description="Advances branches of a run.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(words))
    except UserError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return UNFORESEEN


if __name__ == "__main__":
    sys.exit(main())
