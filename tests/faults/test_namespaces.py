"""Service and queue on one machine, coordinator and workers on another, and the cable between them is pulled.

COEVO_LEASE_S gives another lease.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.namespaces import FAR_ADDRESS, Machines, inside, missing, open_to_others, two_machines
from tests.faults.nursery import Nursery
from tests.faults.recipes import CAPABILITIES, written
from trainer.queue.client import Queue

LEASE_S = float(os.environ.get("COEVO_LEASE_S", "4"))

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """These tests are on the near one."""
    if why := missing():
        pytest.skip(why)
    with two_machines() as machines, inside(machines.near):
        yield machines


@pytest.fixture(scope="module")
def near_nursery(machines: Machines) -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def cluster(machines: Machines, near_nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Its queue and service are on the far one; what is started later is on the near one."""
    folder = tmp_path_factory.mktemp("machines")
    with inside(machines.far):
        cluster = Cluster(folder, "--host=0.0.0.0", nursery=near_nursery, lease_s=LEASE_S)
        open_to_others(cluster.server, FAR_ADDRESS)
    cluster.reach(FAR_ADDRESS)
    yield cluster
    cluster.close()


@pytest.mark.parametrize("leases", [1.5, pytest.param(15.0, marks=pytest.mark.soak)])
def test_a_run_goes_on_after_its_machine_outlasted_its_leases(
    leases: float, machines: Machines, cluster: Cluster, tmp_path: Path
) -> None:
    name = f"cut{leases:.0f}"
    recipe = written(tmp_path, name, "method.cycles=3")
    coordinator = cluster.coordinator(recipe)
    branches = [f"{name}-{capability}" for capability in CAPABILITIES]
    workers = [cluster.worker(branch, name=branch) for branch in branches]
    for branch in branches:
        cluster.wait_for_head(branch, 1)
    machines.pull_cable()
    began = time.monotonic()
    with far_queue(machines, cluster) as queue:
        cluster.wait_until(lambda: not any(waiting.worker for waiting in queue.waiting(branches).values()))
        cluster.wait_until(lambda: time.monotonic() - began > leases * LEASE_S)
        heads = queue.heads()
    machines.plug_in()
    began = time.monotonic()
    cluster.wait_until(lambda: sum(cluster.queue.heads().values()) > sum(heads.values()))
    print(f"the first step {time.monotonic() - began:.1f} s after the cable was back")
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0
    cluster.check(recipe)


@pytest.mark.soak
def test_an_update_behind_the_cut_is_dropped_when_another_took_its_branch(
    machines: Machines, cluster: Cluster, tmp_path: Path
) -> None:
    """A worker beside the service waits for the branch, gets it during the cut, and keeps it."""
    recipe = written(tmp_path, "taken", "method.cycles=1", "method.rlvr_steps=40", capabilities=("text",))
    coordinator, worker = cluster.coordinator(recipe), cluster.worker("taken-text", name="cut-off")
    cluster.wait_for_head("taken-text", 1)
    with inside(machines.far):
        standby = cluster.worker(
            "taken-text",
            name="standby",
            is_fork=False,
            COEVO_SERVICE_URL=cluster.service.url.replace(FAR_ADDRESS, "127.0.0.1"),
            COEVO_REDIS_URL=cluster.server.url.replace(FAR_ADDRESS, "127.0.0.1"),
        )
    cluster.wait_until(lambda: "standby works" in standby.log)
    machines.pull_cable()
    with far_queue(machines, cluster) as queue:
        cluster.wait_until(lambda: queue.waiting(["taken-text"])["taken-text"].worker == "standby")
        taken_at = queue.heads()["taken-text"]
        cluster.wait_until(lambda: queue.heads()["taken-text"] > taken_at)
    machines.plug_in()
    assert [child.wait() for child in (worker, standby, coordinator)] == [0, 0, 0]
    cluster.check(recipe)
    assert "its lease went to another worker" in worker.log


@contextlib.contextmanager
def far_queue(machines: Machines, cluster: Cluster) -> Iterator[Queue]:
    """The queue as it is seen from where it runs."""
    with inside(machines.far), contextlib.closing(Queue(cluster.server.url.replace(FAR_ADDRESS, "127.0.0.1"))) as queue:
        yield queue
