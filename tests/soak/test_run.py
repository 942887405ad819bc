"""Minutes of random faults in a run of three branches. COEVO_SOAK_S says how many seconds, COEVO_SEED which faults.

A whole soak is kept in bench/results/soak.json.
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.monkey import Monkey, quiet_port
from tests.faults.recipes import CAPABILITIES, written
from trainer.recipe.file import load, run_id

WHOLE_S = 600.0
SOAK_S = float(os.environ.get("COEVO_SOAK_S", WHOLE_S))
SEED = int(os.environ.get("COEVO_SEED", "1"))
STEPS_A_S = 1.2
"""More than there can be among faults, so that the run outlives them."""
STEPS_A_CYCLE = 9
RESULT = Path("bench/results/soak.json")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * SOAK_S + 600)]


def test_a_run_ends_as_planned_after_minutes_of_faults(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, f"--port={quiet_port()}")
    try:
        recipe = written(tmp_path, "soak", f"method.cycles={round(SOAK_S * STEPS_A_S / STEPS_A_CYCLE)}")
        workers = {f"soak-{name}": [f"soak-{name}"] for name in CAPABILITIES}
        monkey = Monkey(cluster, recipe, workers, seed=SEED, log=tmp_path / "monkey.jsonl")
        monkey.play(SOAK_S)
        among, began = monkey.steps, time.monotonic()
        monkey.finish(3 * SOAK_S)
        after_s = time.monotonic() - began
        cluster.check(recipe)
        result = {
            "seconds": SOAK_S,
            "seed": SEED,
            "faults": dict(sorted(monkey.counts.items())),
            "steps": {"among faults": among, "after": monkey.steps - among},
            "steps a second": {"among faults": among / SOAK_S, "after": (monkey.steps - among) / after_s},
            "revisions": sum(1 for _ in cluster.store.glob("*/*/manifest.json")),
            "events": len(cluster.events(run_id(load(recipe)))),
        }
    finally:
        cluster.close()
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if SOAK_S >= WHOLE_S:
        RESULT.write_text(text)
