"""Minutes of random faults: in a run of separate processes, and in `coevo run`, which keeps its own.

COEVO_SOAK_S says how many seconds both have together, COEVO_SEED which faults. A whole soak is kept in
bench/results/soak.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cluster import Cluster, check_store
from tests.faults.monkey import Monkey, quiet_port
from tests.faults.recipes import CAPABILITIES, written
from tests.faults.run_monkey import RunMonkey
from trainer.plan.make import make_plan
from trainer.recipe.file import load, run_id
from trainer.reporting.events import Event, read_events

WHOLE_S = 1800.0
SOAK_S = float(os.environ.get("COEVO_SOAK_S", WHOLE_S)) / 2
SEED = int(os.environ.get("COEVO_SEED", "1"))
STEPS_A_S = 1.2
"""More than there can be among faults, so that the run outlives them."""
STEPS_A_CYCLE = 9
CYCLES = f"method.cycles={max(2, round(SOAK_S * STEPS_A_S / STEPS_A_CYCLE))}"
RESULT = Path("bench/results/soak.json")
APART, TOGETHER = "separate processes", "coevo run"
NOISE = 4.0
"""Standard errors between the rewards of two runs that differ by rounding and by lost moments alone."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(8 * SOAK_S + 900)]


def test_a_run_ends_as_planned_after_minutes_of_faults(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, f"--port={quiet_port()}")
    try:
        recipe = written(tmp_path, "soak", CYCLES)
        workers = {f"soak-{name}": [f"soak-{name}"] for name in CAPABILITIES}
        monkey = Monkey(cluster, recipe, workers, seed=SEED, log=tmp_path / "monkey.jsonl")
        monkey.play(SOAK_S)
        among, began = monkey.steps, time.monotonic()
        monkey.finish(3 * SOAK_S + 300)
        after_s = time.monotonic() - began
        cluster.check(recipe, monkey.made_again)
        keep(
            APART,
            monkey.counts,
            {
                "steps": {"among faults": among, "after": monkey.steps - among},
                "steps a second": {"among faults": among / SOAK_S, "after": (monkey.steps - among) / after_s},
                "revisions": sum(1 for _ in cluster.store.glob("*/*/manifest.json")),
                "events": len(cluster.events(run_id(load(recipe)))),
            },
        )
    finally:
        cluster.close()


def test_coevo_run_ends_as_planned_after_minutes_of_faults(tmp_path: Path) -> None:
    """Nothing is lost or doubled, and it learns what an undisturbed run learns."""
    recipe, out, quiet = (
        written(tmp_path, "kept", CYCLES, "evaluation.questions=8"),
        tmp_path / "out",
        tmp_path / "quiet",
    )
    monkey = RunMonkey(recipe, out, seed=SEED)
    try:
        monkey.play(SOAK_S)
        among = monkey.steps
        monkey.finish(3 * SOAK_S + 300)
    finally:
        monkey.close()
    check_store(out / "store")
    steps = [step.makes for step in make_plan(load(recipe)).steps]
    assert monkey.steps == len(steps)
    events = [event for event in events_of(out, recipe) if event["kind"] == "step"]
    times = Counter((event["branch"], event["step"]) for event in events)
    assert {step for step, count in times.items() if count > 1} <= monkey.made_again
    assert (out / "results.json").exists()

    command = [sys.executable, "-m", "clients.cli", "run", str(recipe), "--out", str(quiet), "--unchecked"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rewards = {name: rewards_of(folder, recipe) for name, folder in (("disturbed", out), ("undisturbed", quiet))}
    means = {name: statistics.fmean(values) for name, values in rewards.items()}
    error = sum(statistics.variance(values) / len(values) for values in rewards.values()) ** 0.5
    keep(
        TOGETHER,
        monkey.counts,
        {
            "steps": {"among faults": among, "after": monkey.steps - among},
            "made again": len(monkey.made_again),
            "reward": means | {"standard error of the difference": error},
        },
    )
    assert abs(means["disturbed"] - means["undisturbed"]) < NOISE * error


def events_of(out: Path, recipe: Path) -> list[Event]:
    return read_events(out / "runs" / run_id(load(recipe)) / "events.jsonl")


def rewards_of(out: Path, recipe: Path) -> list[float]:
    """The reward of every step that was told, in its last making."""
    steps = {(event["branch"], event["step"]): event for event in events_of(out, recipe) if event["kind"] == "step"}
    return [event["metrics"]["native/reward"] for event in steps.values() if "native/reward" in event["metrics"]]


def keep(name: str, faults: Counter[str], numbers: dict[str, Any]) -> None:
    result = {"seconds": SOAK_S, "seed": SEED, "faults": dict(sorted(faults.items())), **numbers}
    print(json.dumps({name: result}, indent=1))
    if 2 * SOAK_S >= WHOLE_S:
        before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        both = {part: result if part == name else before.get(part) for part in (APART, TOGETHER)}
        RESULT.write_text(json.dumps(both, indent=1) + "\n")
