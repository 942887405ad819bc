"""A cluster of Ray whose nodes are all on this machine, and can be taken away."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

ROOM: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
LEFT_BEHIND = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
"""What Ray leaves to the collector when its nodes end."""


@contextlib.contextmanager
def three_nodes() -> Iterator[Cluster]:
    """A head without room, and three nodes: for a run's service, its worker, and the two that take little. Commands
    that are started meanwhile find it."""
    with pytest.MonkeyPatch.context() as patch:
        # No token: one that lies on this machine would be asked for by one side alone.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for name in ("USAGE_STATS_ENABLED", "worker_niceness", "memory_monitor_refresh_ms"):
            patch.setenv(f"RAY_{name}", "0")
        cluster = Cluster(initialize_head=True, head_node_args=ROOM | {"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(3):
                cluster.add_node(**ROOM)
            assert cluster.address is not None
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def nodes_by_raylet(cluster: Cluster) -> dict[int, Any]:
    """The nodes, by the process number that all their processes have in RAY_RAYLET_PID."""
    return {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
