"""Workers whose processes have the base's layers in parts: one is killed, others go on; one alone is refused."""

from pathlib import Path

import psutil
import pytest

from tests.faults.cluster import Child, Cluster
from tests.faults.recipes import written

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TORCHRUN = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "trainer.worker")


def test_processes_with_parts_of_the_base_outlive_a_kill(cluster: Cluster, tmp_path: Path) -> None:
    changes = ("worker.shard=true", "method.rlvr_steps=4", "method.cycles=1")
    recipe = written(tmp_path, "parts", *changes, capabilities=("image",))
    coordinator = cluster.coordinator(recipe)
    alone = cluster.worker("parts-image", name="alone")
    assert alone.wait() == 2
    assert "worker.shard: one process has nobody to share the base with; start two or more" in alone.log

    first = start(cluster, tmp_path / "first.log")
    cluster.wait_for_head("parts-image", 2)
    (second_rank,) = [
        process
        for process in psutil.Process(first.process.pid).children(recursive=True)
        if process.environ().get("RANK") == "1" and "trainer.worker" in process.cmdline()
    ]
    second_rank.kill()
    assert first.wait() != 0
    assert start(cluster, tmp_path / "second.log").wait() == 0
    assert coordinator.wait() == 0
    cluster.check(recipe)


def start(cluster: Cluster, log: Path) -> Child:
    environ = cluster.environ | {"COEVO_SERVICE_URL": cluster.service.url}
    words = (*TORCHRUN, "--branch", "parts-image", "--name", "parts")
    child = Child(log, *words, nursery=None, **environ)
    cluster.children.append(child)
    return child
