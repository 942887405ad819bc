"""One step's rollouts and scores against a service, and its record: what a worker does but for the update.

    python -m tests.soak.rated_step RECIPE URL RUNS --speed 600

Prints what came of it as JSON: seconds, tokens, memory before and at most, and for how long another thread had to wait.
"""

import argparse
import asyncio
import json
import threading
import time
from pathlib import Path

import numpy as np

from adapters.manifest import base_digest
from adapters.names import Ref
from clients.client import AsyncClient
from trainer.data.base import base_of
from trainer.loop import Batch, gather_batch
from trainer.orchestration.replay import keep_record, read_batch
from trainer.orchestration.setup import capabilities_of, make_context, open_training_sets
from trainer.plan.steps import Step, Teacher
from trainer.recipe.file import load
from trainer.recipe.limits import limits
from trainer.rewards.pool import RewardPool

STEP = Step("text", 1, ("text",), (Teacher(Ref("image", 0), "image", 1.0),))
LOOK_S = 0.005


def memory(name: str) -> int:
    """In MiB, by the kernel's count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) // 1024


class Waits(threading.Thread):
    """A heartbeat: the longest that it was kept from running."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest_s = 0.0

    def run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            self.longest_s, last = max(self.longest_s, now - last - LOOK_S), now


async def make(recipe_path: Path, url: str, runs: Path, speed: float) -> dict[str, float | bool]:
    recipe = load(recipe_path)
    base = base_of(recipe)
    sets = open_training_sets(recipe, base, capabilities_of([STEP]))
    patience_s = limits(recipe).patience_s / speed
    with RewardPool(num_children=1) as pool:
        async with AsyncClient(url, base=base_digest(base), engine_s=patience_s) as client:
            for branch in ("text", "image"):
                await client.fork(branch, "base")
            context = make_context(recipe, base, client, pool, sets)
            before, waits, began = memory("VmRSS"), Waits(), time.monotonic()
            waits.start()
            batch = await gather_batch(STEP, context)
            gathered = time.monotonic()
            await keep_record(client, "paper", STEP, batch, keep=1)
            recorded = time.monotonic()
    measured = {
        "gather_s": gathered - began,
        "keep_s": recorded - gathered,
        "tokens": sum(len(c.ids_C) for part in batch.rollouts.values() for r in part for c in r.completions),
        "before_mib": before,
        "peak_mib": memory("VmHWM"),
        "longest_wait_s": waits.longest_s,
    }
    again = await asyncio.to_thread(read_batch, runs / "paper", STEP, context)
    return measured | {"is_equal": equal(batch, again)}


def equal(first: Batch, second: Batch) -> bool:
    """Bit by bit what is learnt from."""
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for part, rollouts in first.rollouts.items()
        for x, y in zip(rollouts, second.rollouts[part], strict=True)
        for a, b in zip(x.completions, y.completions, strict=True)
        for name in ("ids_C", "logprobs_C", "advantages_C", *(("delta_C",) if a.delta_C is not None else ()))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("url")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--speed", type=float, required=True)
    words = parser.parse_args()
    print(json.dumps(asyncio.run(make(words.recipe, words.url, words.runs, words.speed))))
