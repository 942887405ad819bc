"""How a run grows with its branches, on one base: seconds of a branch's step, memory, the time of a publish.

    coevo bench branches [--json FILE] [--picture [FILE]] [--most 16] [--steps 4]

K = 1, 2, 4 ... branches of text on the miniature, each with GRPO of its own and an adapter of rank 64. Each K is a run
of its own with a worker of its own, beside one service and one queue; all of them are processes as in any run, on one
thread each. The first step of each branch is left out. Seconds are those from the last of these to the run's end, over
the steps between. Memory is what no other process shares (USS), at its most; the service has all its slots from the
start, so that its memory may not grow at all. The peer of a number is that of K = 1.

Left out: teachers. A step with one has twice the scores, however many branches there are.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from adapters.base import locate
from adapters.errors import UserError
from bench.command import positive
from bench.served import served
from trainer.doctor.memory import lora_parameters, shape_of

PICTURE = Path(__file__).parents[1] / "docs" / "branches.png"
RESULTS = Path(__file__).parent / "results" / "branches.json"
RANK, PROMPTS = 64, 4
STATE_BYTES = 12
"""The bytes of a parameter that is trained: its master and two moments, in float32."""
LOOK_S = 0.5
"""Between two looks at the memory: each reads the maps of all processes, and a step is longer."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one K measured."""

    seconds: float
    """The time of one step of one branch, while all branches make theirs."""
    gather: float
    """Medians of what a step is made of: rollouts and rewards,"""
    learn: float
    """the update,"""
    publish: float
    """and from there until the revision is published and can be asked."""
    worker: int
    """Bytes of the worker at its most."""
    service: int
    """Bytes of the service and its engine at their most."""


Growth = Mapping[int, Figures]


def counts(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


# ---- one run ----


def recipe_of(count: int, steps: int, folder: Path) -> Path:
    """So many branches, under names of their own: a store keeps every branch that it has seen."""
    from trainer.recipe.file import load

    changes = (f"rollout.prompts={PROMPTS}", f"lora.rank={RANK}", f"engine.max_loras={2 * count + 2}")
    changes += ("evaluation.overlap_prompts=0",)  # measured beside the steps, by the service that they ask
    tree = load(Path("miniature"), list(changes)).model_dump(mode="json")
    branches = {f"k{count}-{number}": {"capabilities": ["text"]} for number in range(count)}
    method = {"kind": "rlvr", "cycles": 1, "rlvr_steps": steps, "opd_steps": 0}
    path = folder / f"k{count}.json"
    tree["capabilities"] = {"text": tree["capabilities"]["text"]}
    path.write_text(json.dumps(tree | {"name": f"k{count}", "branches": branches, "method": method}))
    load(path)  # as it will be read: a mistake is told here
    return path


def measure(recipe: Path, count: int, runs: Path) -> Figures:
    from trainer.recipe.file import load, run_id

    id = run_id(load(recipe))
    service = list(_service_processes())  # before: one that has ended and is not waited for yet tells nothing
    coordinator = _start("clients.cli", "coordinate", str(recipe), f"--tracking={runs}")
    worker = _start("trainer.worker", "--branch=all", f"--run={id}", f"--name=k{count}")
    of_worker = of_service = 0
    while worker.poll() is None:  # its last look is before its end: a process that has ended has no memory
        of_worker = max(of_worker, _unshared(worker.pid))
        of_service = max(of_service, sum(map(_unshared, service)))
        time.sleep(LOOK_S)
    assert worker.returncode == 0, f"the worker of {id} ended with {worker.returncode}"
    assert coordinator.wait() == 0
    return figures_of(steps_of(runs / id / "events.jsonl"), of_worker, of_service)


def steps_of(file: Path) -> list[dict[str, Any]]:
    """The events of a finished run's steps. The service writes them behind the queue, so that the last may be late."""
    deadline = time.monotonic() + 60
    while True:
        events = [json.loads(line) for line in file.read_text().splitlines()]
        if any(event["kind"] == "run" and event["state"] == "finished" for event in events):
            return [event for event in events if event["kind"] == "step"]
        assert time.monotonic() < deadline, f"{file} does not say that its run is finished"
        time.sleep(0.2)


def figures_of(steps: Sequence[Mapping[str, Any]], worker: int, service: int) -> Figures:
    """Figures from the events of a run's steps."""
    # An event's id begins with the milliseconds at which the queue's server had it.
    times = {(event["branch"], event["step"]): int(event["id"].partition("-")[0]) / 1000 for event in steps}
    # Before that some branches load what others have: the first step of a branch forks the base and fills caches.
    warm = max(moment for (_, number), moment in times.items() if number == 1)
    later = [moment for (_, number), moment in times.items() if number > 1 and moment > warm]
    parts = [event["seconds"] for event in steps if event["step"] > 1]
    gather, learn, publish = (
        statistics.median(part[name] for part in parts) for name in ("gather", "learn", "publish")
    )
    return Figures((max(later) - warm) / len(later), gather, learn, publish, worker, service)


def _start(module: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.DEVNULL)


def _service_processes() -> Iterator[int]:
    """The service's parent, the service, its engine."""
    for child in psutil.Process().children():
        if "serve" in child.cmdline():
            yield child.pid
            yield from (grandchild.pid for grandchild in child.children(recursive=True))


def _unshared(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_full_info().uss
    except psutil.NoSuchProcess:  # it ended while it was looked at
        return 0


# ---- all of them ----


def adapter_bytes() -> int:
    """What a branch may cost a worker, to the byte."""
    shape = shape_of(json.loads((locate("miniature") / "config.json").read_text()))
    return STATE_BYTES * lora_parameters(shape, RANK)


def slope(growth: Growth) -> float:
    """Bytes of the worker that each branch after the first takes, by least squares."""
    import numpy as np

    return float(np.polyfit(list(growth), [figures.worker for figures in growth.values()], 1)[0])


def json_rows(growth: Growth) -> list[dict[str, Any]]:
    single = growth[1]
    rows = [
        _row(
            f"branches: K = {count}, {name}", unit, getattr(figures, key) / scale, "K = 1", getattr(single, key) / scale
        )
        for count, figures in growth.items()
        for name, key, unit, scale in (
            ("a branch's step", "seconds", "s", 1),
            ("rollouts of a step", "gather", "s", 1),
            ("update of a step", "learn", "s", 1),
            ("publish", "publish", "s", 1),
            ("worker", "worker", "MB", 1e6),
            ("service", "service", "MB", 1e6),
        )
    ]
    if len(growth) == 1:
        return rows
    each, exact = slope(growth) / 1e6, adapter_bytes() / 1e6
    return [*rows, _row("branches: memory of one more", "MB", each, "its masters and moments", exact)]


def _row(label: str, unit: str, value: float, peer: str, peer_value: float) -> dict[str, Any]:
    return {"what": label, "unit": unit, "ours": value, "peer": peer, "theirs": peer_value, "ratio": value / peer_value}


def table(growth: Growth) -> str:
    lines = [
        "| branches | a branch's step, s | of K = 1 | rollouts | update | publish | worker, MB | service, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count, figures in growth.items():
        parts = (figures.gather, figures.learn, figures.publish)
        memory = f"{figures.worker / 1e6:,.0f} | {figures.service / 1e6:,.0f}"
        ratio = figures.seconds / growth[1].seconds
        words = " | ".join(f"{part:.2f}" for part in parts)
        lines.append(f"| {count} | {figures.seconds:.2f} | {ratio:.2f} | {words} | {memory} |")
    if len(growth) > 1:
        each, exact = slope(growth) / 1e6, adapter_bytes() / 1e6
        lines += ["", f"One more branch takes {each:.1f} MB of the worker; its masters and moments are {exact:.1f} MB."]
    return "\n".join(lines)


def from_rows(rows: Sequence[Mapping[str, Any]]) -> Growth:
    """What `json_rows` wrote."""
    keys = {
        "a branch's step": ("seconds", 1), "rollouts of a step": ("gather", 1), "update of a step": ("learn", 1),
        "publish": ("publish", 1), "worker": ("worker", 1e6), "service": ("service", 1e6),
    }  # fmt: skip
    values: dict[int, dict[str, Any]] = {}
    for row in rows:
        label, _, name = row["what"].removeprefix("branches: K = ").partition(", ")
        if name:
            key, scale = keys[name]
            values.setdefault(int(label), {})[key] = row["ours"] * scale
    return {count: Figures(**figures) for count, figures in values.items()}


def draw(growth: Growth, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, memory, publishes) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    sizes, single = list(growth), growth[1]
    times.plot(sizes, [1.15 * single.seconds] * len(sizes), "--", color="0.6", label="1.15 of K = 1")
    times.plot(sizes, [figures.seconds for figures in growth.values()], "o-", label="measured")
    times.set(ylabel="seconds of a branch's step", ylim=(0, None))
    exact = [(count - 1) * adapter_bytes() / 1e6 for count in sizes]
    memory.plot(sizes, exact, "--", color="0.6", label="masters and moments")
    memory.plot(sizes, [(figures.worker - single.worker) / 1e6 for figures in growth.values()], "o", label="worker")
    memory.plot(sizes, [(figures.service - single.service) / 1e6 for figures in growth.values()], "s", label="service")
    memory.set(ylabel="MB more than with one")
    publishes.plot(sizes, [figures.publish for figures in growth.values()], "o-", label="measured")
    publishes.set(ylabel="seconds of a publish", ylim=(0, None))
    for panel in (times, memory, publishes):
        panel.set(xlabel="branches", xticks=sizes)
        panel.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def run(arguments: argparse.Namespace) -> int:
    if arguments.steps < 2:
        raise UserError("--steps 1: the first of each branch is left out; take 2 or more")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for the engine, one for the trainer
    from clients.address import URL_VARIABLE
    from trainer.queue import server as queue_server

    growth: dict[int, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="coevo-bench-") as name, queue_server.start(Path(name) / "queue") as queue:
        folder = Path(name)
        os.environ[queue_server.URL_VARIABLE] = queue.url
        recipes = {count: recipe_of(count, arguments.steps, folder) for count in counts(arguments.most)}
        with served(str(recipes[max(recipes)]), f"--runs={folder / 'runs'}") as url:
            os.environ[URL_VARIABLE] = url
            for count, recipe in recipes.items():
                print(f"K = {count} of {max(recipes)}", file=sys.stderr)
                growth[count] = measure(recipe, count, folder / "runs")
                if arguments.json:  # each as soon as it is there: the largest takes as long as all before it
                    arguments.json.write_text(json.dumps(json_rows(growth), indent=2) + "\n")
    print(table(growth))
    if arguments.picture:
        draw(growth, arguments.picture)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--picture", type=Path, nargs="?", const=PICTURE, metavar="FILE",
                        help="draw the growth (default: docs/branches.png)")  # fmt: skip
    parser.add_argument("--most", type=positive, default=16, metavar="K", help="the most branches (default: 16)")
    parser.add_argument("--steps", type=positive, default=4, metavar="N", help="of each branch, 2 or more (default: 4)")


def main() -> int:
    parser = argparse.ArgumentParser(description="how a run grows with its branches")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
