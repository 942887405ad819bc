"""Jobs that failed for good, over HTTP, with a real queue."""

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from adapters.store import Store
from service.http import problems
from service.publishing.fence import QueueFence
from service.routes import jobs
from tests.adapters.files import BASE
from trainer.queue.client import Job, Queue
from trainer.queue.jobs import Lease
from trainer.queue.server import start

JOB = Job("demo-1:image:5", "demo-1", "image", "rlvr", first=0, steps=5)


def kill(queue: Queue, error: str = "no memory") -> None:
    queue.reconcile("store", {})
    queue.enqueue(JOB)
    lease = queue.claim("image", "w-all")
    assert isinstance(lease, Lease)
    queue.release(lease, error, fatal=True)


def client_of(fence: QueueFence | None) -> TestClient:
    app = FastAPI()
    app.state.service = SimpleNamespace(fence=fence)
    problems.install(app)
    app.include_router(jobs.router)
    return TestClient(app)


@pytest.fixture
def queue(tmp_path: Path) -> Generator[Queue]:
    with start(tmp_path / "queue") as server:
        queue = Queue(server.url)
        yield queue
        queue.close()


def test_a_dead_job_is_listed_and_lives_again_by_its_name(queue: Queue, tmp_path: Path) -> None:
    kill(queue)
    with Store(tmp_path / "store", BASE) as store, client_of(QueueFence(queue.url, store)) as client:
        dead = {"branch": "image", "job": JOB.id, "error": "no memory"}
        assert client.get("/jobs").json() == {"dead": [dead]}
        refused = client.post("/jobs/image/retry", json={"job": "demo-1:image:9"})
        assert (refused.status_code, refused.json()["type"]) == (404, "not-found")
        assert refused.json()["detail"] == "'demo-1:image:9' of image has not failed for good; /jobs has those"
        assert [job.job for job in queue.dead()] == [JOB.id]
        assert client.post("/jobs/image/retry", json={"job": JOB.id}).json() == {"dead": []}
        assert isinstance(queue.claim("image", "w-all"), Lease)
        assert client.post("/jobs/image/retry", json={"job": JOB.id}).status_code == 404


def test_without_a_queue_no_job_is_dead() -> None:
    with client_of(None) as client:
        assert client.get("/jobs").json() == {"dead": []}
        assert client.post("/jobs/image/retry", json={"job": JOB.id}).status_code == 404


def test_a_queue_that_is_away_is_told(tmp_path: Path) -> None:
    fence_url = "redis://127.0.0.1:1/0"
    with Store(tmp_path / "store", BASE) as store, client_of(QueueFence(fence_url, store, timeout_s=0.2)) as client:
        answer = client.post("/jobs/image/retry", json={"job": JOB.id})
        assert (answer.status_code, answer.json()["type"]) == (503, "queue-away")
