"""Store, runs and queue on one disk that is full for a while: nothing is lost, and the service says why it waits."""

from pathlib import Path

import httpx
import pytest

from tests import disks
from tests.faults.cluster import Cluster
from tests.faults.nursery import Nursery
from tests.faults.recipes import written
from tests.faults.test_workers import FIVE, assert_scores, events_of, finish

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def metrics(cluster: Cluster) -> str:
    return httpx.get(f"{cluster.service.url}/metrics", timeout=10).text


def test_a_run_waits_for_a_disk_that_is_full_and_ends_whole(tmp_path: Path, nursery: Nursery) -> None:
    """Faults 19, 21 and 23."""
    (tmp_path / "tmp").mkdir()
    with disks.small_disk(tmp_path / "disk", "64m") as disk:
        cluster = Cluster(disk, nursery=nursery, TMPDIR=str(tmp_path / "tmp"))
        try:
            recipe, branch = written(tmp_path, "full", *FIVE, capabilities=("text",)), "full-text"
            coordinator = cluster.coordinator(recipe)
            worker = cluster.worker(branch, name="full", COEVO_FAULT=f"stop:learnt:{branch}@2")
            cluster.wait_until(lambda: worker.is_stopped())
            ballast = disks.fill(disk, leave=0)
            worker.wake()
            # Not in a log: those are on the same disk.
            cluster.wait_until(lambda: 'coevo_rejections_total{type="disk-full"}' in metrics(cluster))
            ready = httpx.get(f"{cluster.service.url}/readyz", timeout=10)
            assert ready.status_code == 503
            assert "the store has 0 MiB of disk left, a revision like the newest takes" in ready.json()["detail"]
            assert_scores(cluster)
            assert cluster.heads() == {branch: 1}
            ballast.unlink()
            finish(cluster, recipe, coordinator, worker)
            assert [event["step"] for event in events_of(cluster, recipe, "step")] == [1, 2, 3, 4, 5]
            assert events_of(cluster, recipe, "failed") == []
            assert httpx.get(f"{cluster.service.url}/readyz", timeout=10).status_code == 200
        finally:
            cluster.close()
