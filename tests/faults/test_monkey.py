"""Random faults, quickly one after the other: the run that went through them is the run that was planned.

COEVO_SEED gives other faults, `make soak` half an hour of them, in `coevo run` too.
"""

import os
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.monkey import Monkey, quiet_port
from tests.faults.nursery import Nursery
from tests.faults.recipes import CAPABILITIES, written

SECONDS = 30.0
PAUSE_S = (0.5, 3.0)
LEAST_FAULTS = 8
"""Even where the run is over sooner."""
SEED = int(os.environ.get("COEVO_SEED", "1"))

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_run_ends_as_planned_whatever_happened_to_its_processes(tmp_path: Path, nursery: Nursery) -> None:
    """Three branches of a worker each, first among faults and then without."""
    cluster = Cluster(tmp_path, f"--port={quiet_port()}", nursery=nursery)
    try:
        recipe = written(tmp_path, "monkey", "method.cycles=5")
        workers = {f"monkey-{name}": [f"monkey-{name}"] for name in CAPABILITIES}
        monkey = Monkey(cluster, recipe, workers, seed=SEED, log=tmp_path / "monkey.jsonl", pause_s=PAUSE_S)
        monkey.play(SECONDS)
        assert monkey.counts.total() >= LEAST_FAULTS
        print(f"{monkey.steps} steps among {dict(monkey.counts)}")
        monkey.finish(540)
        cluster.check(recipe, monkey.made_again)
    finally:
        cluster.close()
