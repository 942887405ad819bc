"""How far a run grows, by arithmetic: the tables of docs/scale.md. Nothing is measured here, and nothing needs a card.

    python -m bench.scale

The planner's part: four bases on cards of 80 GB, with what each card holds and how many branches it has room for. Then
a plan of many branches, simulated with what `coevo bench branches` measured (bench/results/branches.json).

The simulation is of the scheduler: a worker has 1 + `budget.prefetch` steps under way, each of which is first at an
engine core, then at the worker, which learns one step at a time, then at the service, which publishes one at a time. A
core makes one step's rollouts at a time, for as long as they took in the run of most branches. Cores on a card batch
several steps' rollouts, so they do better; what is left out of the time of others is that, and exams.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path

from bench import branches
from trainer.commands.plan import groups_of
from trainer.doctor import price
from trainer.doctor.cards import Spread, spread_of
from trainer.doctor.fit import parts_of
from trainer.doctor.memory import GIB, KNOWN_SHAPES, SPARE, Shape, total
from trainer.plan.make import make_plan
from trainer.recipe import Recipe
from trainer.recipe.file import load

CARD, HOURLY = "h100", 2.5
BASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "4B": (1, ()),
    "8B": (2, ("engine.data_parallel=2",)),
    "32B": (4, ("engine.tensor_parallel=4", "worker.shard=true")),
    "30B-A3B": (4, ("engine.data_parallel=2", "engine.tensor_parallel=2", "worker.shard=true")),
}
"""Qwen3-VL's: the worker's processes, and what the recipe says of the engine."""
MANY, STEPS = 256, 30


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of a branch's step."""

    gather: float
    learn: float
    publish: float


# ---- many branches ----


def simulate(count: int, steps: int, *, cores: int, workers: int, rates: Rates, prefetch: int = 1) -> float:
    """Seconds until so many branches have made so many steps each."""
    core_free, worker_free, publish_free = [0.0] * cores, [0.0] * workers, 0.0
    # Of each worker its branches, by when they may go on; and its tasks, each of which has a step from begin to end.
    ready = [[(0.0, branch, steps) for branch in range(worker, count, workers)] for worker in range(workers)]
    tasks = [(0.0, worker) for worker in range(workers) for _ in range(1 + prefetch)]
    heapify(core_free)
    heapify(tasks)
    end = 0.0
    while tasks:
        free, worker = heappop(tasks)
        if not ready[worker]:
            continue  # this task has nothing left to do
        since, branch, left = ready[worker][0]
        if since > free:  # others may take the core first
            heappush(tasks, (since, worker))
            continue
        heappop(ready[worker])
        gathered = max(free, heappop(core_free)) + rates.gather
        heappush(core_free, gathered)
        worker_free[worker] = learnt = max(gathered, worker_free[worker]) + rates.learn
        publish_free = end = max(learnt, publish_free) + rates.publish
        if left > 1:
            heappush(ready[worker], (end, branch, left - 1))
        heappush(tasks, (end, worker))
    return end


def measured_rates() -> Rates:
    growth = branches.from_rows(json.loads(branches.RESULTS.read_text()))
    most = growth[max(growth)]
    return Rates(most.gather, most.learn, most.publish)


def simulated_table(rates: Rates) -> Iterator[str]:
    yield f"| cores and workers, each | hours of {MANY} branches x {STEPS} steps | times as fast | of that at best |"
    yield "| --- | --- | --- | --- |"
    single = simulate(MANY, STEPS, cores=1, workers=1, rates=rates)
    for size in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        seconds = simulate(MANY, STEPS, cores=size, workers=size, rates=rates)
        faster = single / seconds
        yield f"| {size} | {seconds / 3600:.2f} | {faster:.1f} | {faster / size:.0%} |"


# ---- the planner's ----


def planned_table() -> Iterator[str]:
    yield "| base | cards | GiB on a card of the engine | of the worker | branches that fit | hours | price |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from map(planned_row, BASES)


def planned_row(size: str) -> str:
    processes, changes = BASES[size]
    recipe = load(Path("gpu-1x80g-4b"), [f"base.name=Qwen/Qwen3-VL-{size}-Instruct", *changes])
    shape, spread = KNOWN_SHAPES[recipe.base.name], spread_of(recipe, processes=processes)
    engine = price.Engine(
        min(recipe.engine.max_num_seqs, recipe.rollout.prompts * recipe.rollout.group_size), recipe.engine.kv_cache_gib
    )
    groups = groups_of(make_plan(recipe), recipe)
    hours = price.hours(groups, shape, price.CARDS[CARD], engine, rank=recipe.lora.rank, spread=spread).total
    service, worker = (size / GIB for size in taken(recipe, shape, spread))
    cells = (
        size,
        f"{spread.cards}: {spread}",
        f"{service:.1f}",
        f"{worker:.1f}",
        f"{most_branches(recipe, shape, spread)}",
        f"{hours:,.0f}",
        f"{hours * HOURLY * spread.cards:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def taken(recipe: Recipe, shape: Shape, spread: Spread) -> tuple[int, int]:
    """Bytes of a card of the engine, and of the worker."""
    parts = parts_of(recipe, shape, on_gpu=True, spread=spread)
    service = total([part for part in parts if part.process == "service"])
    return service, total(parts) - service


def most_branches(recipe: Recipe, shape: Shape, spread: Spread) -> int:
    """With two slots of the engine for each and two more, and the masters and moments of all in the worker."""
    room = price.CARDS[CARD].gib * GIB - SPARE
    branch = next(iter(recipe.branches.values()))

    def fits(count: int) -> bool:
        engine = recipe.engine.model_copy(update={"max_loras": 2 * count + 2})
        names = {f"b{number}": branch for number in range(count)}
        sizes = taken(recipe.model_copy(update={"engine": engine, "branches": names}), shape, spread)
        return (sum(sizes) if spread.is_shared else max(sizes)) <= room

    return next(count for count in range(10_000) if not fits(count + 1))


if __name__ == "__main__":
    print(*planned_table(), sep="\n")
    if branches.RESULTS.exists():  # else nobody has measured what is simulated
        growth = branches.from_rows(json.loads(branches.RESULTS.read_text()))
        print("", branches.table(growth), "", *simulated_table(measured_rates()), sep="\n")
