"""A head that falls back, because the store lost its newest revisions: on a real server."""

from collections.abc import Generator
from typing import Any

import pytest
import redis

from trainer.queue.client import PERMANENT, Job, Lease, Queue, Refusal
from trainer.queue.server import Server

STORE = "store-1"
JOBS = [Job(f"image:{first}", "run", "image", "rlvr", first, last - first) for first, last in ((0, 3), (3, 5), (5, 8))]
FIRST, SECOND, THIRD = JOBS


@pytest.fixture
def raw(server: Server) -> Generator[Any]:
    client = redis.Redis.from_url(server.url, decode_responses=True)
    client.flushall()
    yield client
    assert {key for key in client.scan_iter() if client.ttl(key) < 0} <= PERMANENT
    client.close()


@pytest.fixture
def queue(server: Server, raw: Any) -> Generator[Queue]:
    """The branch is at 3, and has two jobs to go."""
    queue = Queue(server.url)
    queue.reconcile(STORE, {"image": (3, 0)})
    for job in (SECOND, THIRD):
        queue.enqueue(job)
    yield queue
    queue.close()


def claimed(queue: Queue) -> Lease:
    reply = queue.claim("image", "w1")
    assert isinstance(reply, Lease), reply
    return reply


def test_a_head_that_falls_over_a_jobs_end_gets_its_jobs_in_order(queue: Queue) -> None:
    queue.reconcile(STORE, {"image": (2, 0)})
    for job in JOBS[:2]:  # as the coordinator does when it sees the head
        queue.enqueue(job)
    assert queue.waiting(["image"])["image"].jobs == (FIRST, SECOND)
    assert claimed(queue).job == FIRST


def test_the_lease_of_a_branch_whose_head_fell_is_lost(queue: Queue) -> None:
    lease = claimed(queue)
    newest = queue.last_news()
    queue.reconcile(STORE, {"image": (2, lease.token)})
    assert queue.renew("w1", [lease]) == []
    assert not queue.is_current("image", lease.token)
    assert queue.last_news() != newest  # the coordinator waits for it
    assert queue.waiting(["image"])["image"].attempts == 0


def test_a_head_that_stands_still_keeps_jobs_and_lease(queue: Queue) -> None:
    lease = claimed(queue)
    queue.reconcile(STORE, {"image": (3, lease.token)})
    assert queue.waiting(["image"])["image"].jobs == (SECOND, THIRD)
    assert queue.renew("w1", [lease]) == [lease]


def test_a_job_that_leaves_a_gap_is_not_enqueued(queue: Queue) -> None:
    """A coordinator may have seen the head just before it fell."""
    queue.reconcile(STORE, {"image": (2, 0)})
    assert queue.enqueue(SECOND) == "ahead"
    assert queue.waiting(["image"])["image"].jobs == ()
    assert [queue.enqueue(job) for job in JOBS] == ["enqueued"] * 3


def test_jobs_that_stand_in_the_wrong_order_are_dropped_at_a_claim(queue: Queue, raw: Any) -> None:
    """As a server may still have them that an older version has filled."""
    raw.hset("coevo:heads", "image", 2)
    newest = queue.last_news()
    assert queue.claim("image", "w1") == Refusal("ahead")
    assert queue.waiting(["image"])["image"].jobs == ()
    assert queue.last_news() != newest
    queue.enqueue(FIRST)
    assert claimed(queue).job == FIRST
