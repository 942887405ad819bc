"""A real queue server for what schedules and coordinates."""

from collections.abc import Generator

import pytest
import redis

from trainer.queue.client import Queue
from trainer.queue.server import Server, start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with start(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture
def queue(server: Server) -> Generator[Queue]:
    """Empty, and told of a store without branches."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    queue = Queue(server.url)
    queue.reconcile("store", {})
    yield queue
    queue.close()
