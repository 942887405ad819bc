"""What it is worth to make the next branch's rollouts while one branch is updated: one worker, three branches, hub.

    coevo bench pipeline [--json FILE] [--rounds 3]

The same plan with `budget.prefetch` 1 and 0, in turns, each under branch names of its own; seconds from the worker's
first look to its last publish, with queue, coordinator and service as they are in a run.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.command import positive
from bench.served import served

RECIPE = "miniature"
SERVICE = (RECIPE, "--max-model-len=209", "--max-lora-rank=16", "--max-loras=12", "--max-num-seqs=192")
CHANGES = ("method.cycles=1", "method.rlvr_steps=3", "method.opd_steps=2")


def run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for the engine, one for the trainer
    from trainer.queue.server import URL_VARIABLE, start
    from trainer.rewards.pool import RewardPool

    with tempfile.TemporaryDirectory(prefix="coevo-bench-") as folder, start(Path(folder) / "queue") as server:
        os.environ[URL_VARIABLE] = server.url
        with RewardPool(num_children=1) as pool, served(*SERVICE, f"--runs={folder}/runs") as url:
            times = asyncio.run(_measure(url, server.url, pool, arguments.rounds, Path(folder)))
    for prefetch, seconds in times.items():
        print(f"prefetch = {prefetch}: {statistics.median(seconds):.1f} s, of {[round(value, 1) for value in seconds]}")
    ahead, in_turn = statistics.median(times[1]), statistics.median(times[0])
    print(f"{ahead / in_turn:.2f} of the time")
    if arguments.json:
        row = {"what": "pipeline", "unit": "s", "ours": ahead, "peer": "prefetch = 0", "theirs": in_turn,
               "ratio": ahead / in_turn, "rounds": times}  # fmt: skip
        arguments.json.write_text(json.dumps([row], indent=1) + "\n")
    return 0


async def _measure(url: str, queue_url: str, pool: Any, rounds: int, folder: Path) -> dict[int, list[float]]:
    import torch

    from adapters.base import locate
    from adapters.manifest import base_digest
    from clients.client import AsyncClient

    torch.set_num_threads(1)
    base = locate("miniature")
    digest = base_digest(base)
    times: dict[int, list[float]] = {1: [], 0: []}
    async with AsyncClient(url, base=digest) as client:
        for number in range(rounds + 1):
            for prefetch, seconds in times.items():
                took = await _once(f"r{number}-{prefetch}", prefetch, client, queue_url, pool, base, digest, folder)
                if number > 0:  # the first one warms both up
                    seconds.append(took)
    return times


async def _once(
    name: str, prefetch: int, client: Any, queue_url: str, pool: Any, base: Path, digest: str, folder: Path
) -> float:
    import time

    from trainer.orchestration.coordinator import Coordinator
    from trainer.orchestration.heartbeat import Heartbeat
    from trainer.orchestration.scheduler import Run, StepScheduler
    from trainer.orchestration.setup import make_context, make_learner, open_training_sets
    from trainer.orchestration.watchdog import Patience, Watchdog
    from trainer.plan.make import make_plan
    from trainer.queue.client import Queue
    from trainer.recipe.file import run_id
    from trainer.update.ranks import SINGLE_PROCESS

    recipe = _recipe(name, prefetch, folder)
    queue, id = Queue(queue_url), run_id(recipe)
    coordinating = asyncio.create_task(Coordinator(id, recipe, queue, client).coordinate())
    context = make_context(recipe, base, client, pool, open_training_sets(recipe, base, recipe.capabilities))
    learner = make_learner(recipe, base, digest, "cpu", SINGLE_PROCESS)
    while not await asyncio.to_thread(queue.runs):
        await asyncio.wait([coordinating], timeout=0.1)
        if coordinating.done():
            coordinating.result()  # raises why there will be no run
    heartbeat = Heartbeat(Queue(queue_url), name)
    heartbeat.start()
    watchdog = Watchdog(
        Queue(queue_url), heartbeat, id, name, Patience.of(recipe, *client.longest_s), done=lambda: client.answered
    )
    watchdog.start()
    scheduler = StepScheduler(
        Run(id, recipe, make_plan(recipe)),
        list(recipe.branches),
        name=name,
        queue=queue,
        heartbeat=heartbeat,
        watchdog=watchdog,
        context=context,
        learner=learner,
    )
    began = time.monotonic()
    await scheduler.run()
    took = time.monotonic() - began
    watchdog.end()
    heartbeat.end()
    await coordinating
    return took


def _recipe(name: str, prefetch: int, folder: Path) -> Any:
    """The miniature under branch names of its own: a store keeps every branch that it has seen."""
    from trainer.recipe.file import load

    tree = load(Path(RECIPE), [*CHANGES, f"budget.prefetch={prefetch}"]).model_dump(mode="json")
    branches = {f"{name}-{capability}": {"capabilities": [capability]} for capability in tree["capabilities"]}
    tree |= {"name": name, "branches": branches}
    tree["method"]["hub"] = f"{name}-text"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return load(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the row to this file as well")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
