"""One nursery for all whole runs, and one cluster for those that leave its service alive."""

from collections.abc import Iterator

import pytest

from tests.faults.cluster import Cluster
from tests.faults.nursery import Nursery


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Cluster]:
    """Tests share it: each has branches of its own."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), nursery=nursery)
    yield cluster
    cluster.close()
