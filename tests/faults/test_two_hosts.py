"""Two hosts, as network namespaces: an engine of two cores on one, and the workers on the other, which is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.namespaces import FAR_ADDRESS, Machines, inside, missing, open_to_others, two_machines
from tests.faults.recipes import CAPABILITIES, written

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(1150)]
LEASE_S = 6.0


@pytest.fixture
def machines() -> Iterator[Machines]:
    """These tests are on the near one."""
    if why := missing():
        pytest.skip(why)
    with two_machines() as machines, inside(machines.near):
        yield machines


def test_a_run_on_two_cores_ends_after_its_workers_host_was_lost(machines: Machines, tmp_path: Path) -> None:
    """Queue, service and coordinator are on the far host, two workers on the near one."""
    recipe = written(tmp_path, "hosts", "method.cycles=2")
    branches = [f"hosts-{capability}" for capability in CAPABILITIES]
    with inside(machines.far):
        cluster = Cluster(tmp_path, "--host=0.0.0.0", "--data-parallel=2", lease_s=LEASE_S)
        open_to_others(cluster.server, FAR_ADDRESS)
        coordinator = cluster.coordinator(recipe)
    cluster.reach(FAR_ADDRESS)
    shares = (branches[:2], branches[2:])
    try:
        workers = [cluster.worker(*share, name=f"first-{number}") for number, share in enumerate(shares)]
        for branch in branches:
            cluster.wait_for_head(branch, 1)
        machines.pull_cable()
        for worker in workers:
            worker.kill()
        machines.plug_in()
        heads = cluster.heads()
        workers = [cluster.worker(*share, name=f"second-{number}") for number, share in enumerate(shares)]
        assert [worker.wait(600) for worker in workers] == [0, 0]
        assert coordinator.wait() == 0
        assert sum(cluster.heads().values()) > sum(heads.values())
        cluster.check(recipe)
    finally:
        cluster.close()
