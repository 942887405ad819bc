"""Files of the store that are damaged while everything runs: what was lost is made again, and told."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.manifest import OPTIMISER, WEIGHTS
from tests.faults.cluster import Child, Cluster
from tests.faults.monkey import quiet_port
from tests.faults.nursery import Nursery
from tests.faults.recipes import written
from tests.faults.test_workers import FIVE, events_of, finish
from tests.faults.vandal import flip_a_bit

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Cluster]:
    """On a port that stays: the service is started again in every test."""
    cluster = Cluster(tmp_path_factory.mktemp("damaged"), f"--port={quiet_port()}", nursery=nursery)
    yield cluster
    cluster.close()


def restart(cluster: Cluster) -> None:
    for process in cluster.service.family:
        process.kill()
    cluster.service.wait_for_end()
    cluster.service.start()


def wake_twice(cluster: Cluster, worker: Child) -> None:
    """It stops at the same point again, when it has made the lost steps."""
    worker.wake()
    cluster.wait_until(lambda: not worker.is_stopped())
    cluster.wait_until(lambda: worker.is_stopped())
    worker.wake()


def test_a_head_that_falls_behind_a_finished_job_stops_no_branch(cluster: Cluster, tmp_path: Path) -> None:
    """The first phase has four steps. When the fourth is lost, the job that made it is over and gone."""
    recipe, branch = written(tmp_path, "fallen", *FIVE), "fallen-text"
    coordinator = cluster.coordinator(recipe)
    worker = cluster.worker("all", name="fallen", COEVO_FAULT=f"stop:gathered:{branch}@5")
    cluster.wait_until(lambda: worker.is_stopped())
    flip_a_bit(cluster.store / branch / "4" / WEIGHTS)
    restart(cluster)
    assert cluster.heads()[branch] == 3
    wake_twice(cluster, worker)
    finish(cluster, recipe, coordinator, worker, made_again={(branch, 4)})
    (event,) = events_of(cluster, recipe, "fell")
    assert event["text"].startswith("its head fell from 4 to 3")


def test_moments_that_are_lost_with_their_revisions_are_told(cluster: Cluster, tmp_path: Path) -> None:
    """Only the two newest revisions have moments. Both are damaged, so the next step begins with none."""
    recipe, branch = written(tmp_path, "moments", *FIVE, capabilities=("text",)), "moments-text"
    coordinator = cluster.coordinator(recipe)
    worker = cluster.worker(branch, name="moments", COEVO_FAULT=f"stop:gathered:{branch}@4")
    cluster.wait_until(lambda: worker.is_stopped())
    for revision in ("2", "3"):
        flip_a_bit(cluster.store / branch / revision / WEIGHTS)
    assert not (cluster.store / branch / "1" / OPTIMISER).exists()
    restart(cluster)
    wake_twice(cluster, worker)
    finish(cluster, recipe, coordinator, worker, made_again={(branch, 2), (branch, 3)})
    assert f"{branch}@1: the optimiser's moments are gone, they begin anew" in worker.log
    steps = {event["step"]: event for event in events_of(cluster, recipe, "step")}  # the last of each
    assert [step for step, event in steps.items() if any("moments" in text for text in event["warnings"])] == [2]
