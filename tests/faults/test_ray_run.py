"""A whole run on a cluster of Ray that loses the nodes of its worker and of its service, and gets others."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.faults.cluster import check_store
from tests.faults.test_local_run import SMALL
from tests.raynodes import LEFT_BEHIND, ROOM, nodes_by_raylet, three_nodes
from trainer.local.train import is_trained
from trainer.plan.make import make_plan
from trainer.recipe.file import load

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800), LEFT_BEHIND]


def exchange_node_of(cluster: Cluster, word: str) -> psutil.Process:
    """Takes the node away where a process with this word in its command runs, and adds another."""
    nodes = nodes_by_raylet(cluster)
    (process,) = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if word in (process.info["cmdline"] or ())[2:4]
        and int((process.info["environ"] or {}).get("RAY_RAYLET_PID", 0)) in nodes
        and not ((parent := process.parent()) and word in parent.cmdline())  # not what it has forked itself
    ]
    cluster.remove_node(nodes[int(process.info["environ"]["RAY_RAYLET_PID"])], allow_graceful=False)
    cluster.add_node(**ROOM)
    return process


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with three_nodes() as cluster:
        yield cluster


def test_a_run_outlives_the_nodes_of_its_worker_and_its_service(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sets = [word for change in (*SMALL, "method.cycles=1") for word in ("--set", change)]
    run = subprocess.Popen(
        [sys.executable, "-m", "clients.cli", "run", "recipes/miniature.toml", *sets, f"--out={out}", "--on=ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []

    def wait_for(is_it: Callable[[str], bool]) -> None:
        assert run.stdout is not None
        for line in run.stdout:
            said.append(line)
            if is_it(line):
                return
        raise AssertionError("".join(said))

    try:
        wait_for(lambda line: line.startswith("text@1 of 3"))
        worker = exchange_node_of(cluster, "trainer.worker")
        wait_for(lambda line: line.startswith("worker-all: lost with its actor: "))
        wait_for(lambda line: " of 3: reward" in line)
        assert not worker.is_running()
        service = exchange_node_of(cluster, "serve")
        wait_for(lambda line: line.startswith("service: lost with its actor: ") and "all processes begin again" in line)
        assert not service.is_running()
        rest, _ = run.communicate()
    finally:
        run.kill()  # its processes end with it
    assert run.returncode == 0, "".join(said) + rest
    assert "is finished" in rest
    recipe = load(out / "recipe.json")
    assert is_trained(out, recipe)  # the heads are those of the plan
    check_store(out / "store")
    plan = make_plan(recipe)
    for start in plan.starts:
        assert (out / "store" / start.branch / str(plan.head(start.branch)) / "manifest.json").exists()
