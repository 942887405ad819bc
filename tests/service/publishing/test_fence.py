"""The fence beside a real queue server, and the watcher that keeps the two agreeing."""

import asyncio
import logging
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest
import redis
from fastapi import FastAPI, Request

from adapters.names import Ref
from adapters.store import Store
from service.http import problems
from service.http.metrics import Metrics
from service.http.problems import ProblemError
from service.publishing.decisions import PublishRefusedError, Upload
from service.publishing.fence import QueueFence, fenced_by_queue
from service.runs import Runs
from tests.adapters.files import BASE, write_adapter
from tests.faults.queue_process import QueueProcess
from tests.service.publishing.publish_once import make_publisher, publish
from tests.service.recording import RecordingLoader
from trainer.queue.client import HEADS, Job, OtherStoreError, Queue
from trainer.queue.server import start

pytestmark = pytest.mark.anyio
FIRST = Upload(Ref("image", 1), 0)
PATIENCE_S = 30.0
QUICK = {"every_s": 0.05, "timeout_s": 0.3}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with start(tmp_path_factory.mktemp("queue")) as server:
        yield server


@pytest.fixture
def server(shared):
    """The same for all tests, emptied for each."""
    with redis.Redis.from_url(shared.url) as client:
        client.flushall()
    return shared


@pytest.fixture
def own_server(tmp_path):
    """For tests that stop it."""
    with start(tmp_path / "queue") as server:
        yield server
        server.process.send_signal(signal.SIGCONT)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", BASE) as store:
        yield store


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs")


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "adapter", 1)


@pytest.fixture
async def opened():
    """Opens fences that are closed after the test; `opened(url, store)`."""
    async with AsyncExitStack() as stack:

        async def open_fence(url, store, runs=None):
            if runs is not None:
                return await stack.enter_async_context(fenced_by_queue(url, store, runs, **QUICK))
            fence = QueueFence(url, store, timeout_s=QUICK["timeout_s"])
            stack.push_async_callback(fence.close)
            return fence

        yield open_fence


def publisher_of(store, tmp_path, fence):
    return make_publisher(store, RecordingLoader(), tmp_path / "cache", fence=fence)


def emptied(server):
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def token_of(queue, branch, first=0):
    queue.enqueue(Job(f"job-{first}", "run", branch, "grpo", first, 2))
    return queue.claim(branch, "worker").token


async def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_publish_needs_the_token_of_the_lease(opened, server, store, tmp_path, adapter):
    fence = await opened(server.url, store)
    _, publisher = publisher_of(store, tmp_path, fence)
    assert await fence.is_current("image", None)
    queue = Queue(server.url)
    token = token_of(queue, "image")
    assert [await fence.is_current("image", number) for number in (token - 1, token, token + 1)] == [False, True, True]
    assert not await fence.is_current("image", None)  # somebody works on it
    for wrong in (token - 1, None):
        with pytest.raises(PublishRefusedError) as refused:
            await publish(publisher, adapter, replace(FIRST, token=wrong))
        assert refused.value.kind == "fenced"
    assert queue.heads() == {}
    assert (await publish(publisher, adapter, replace(FIRST, token=token))).is_new
    assert queue.heads() == {"image": 1}
    queue.close()


async def test_a_head_goes_back_when_nobody_works_on_the_branch(opened, server, store, tmp_path, adapter):
    fence = await opened(server.url, store)
    _, publisher = publisher_of(store, tmp_path, fence)
    await publish(publisher, adapter, FIRST)
    queue = Queue(server.url)
    token = token_of(queue, "image", first=1)
    with pytest.raises(
        PublishRefusedError, match="somebody works on image, and continues 1; stop that first"
    ) as refused:
        await publisher.go_back("image", 0, 1)
    assert (refused.value.kind, queue.heads()) == ("fenced", {"image": 1})
    # Who has the lease may. The queue counts the new head as it counts a step.
    await publisher.go_back("image", 0, 1, token)
    assert queue.heads() == {"image": 2}
    queue.close()


async def test_the_queue_hears_of_forks(opened, server, store, tmp_path, adapter):
    _, publisher = publisher_of(store, tmp_path, await opened(server.url, store))
    await publish(publisher, adapter, FIRST)
    await publisher.fork("video", "image@1")
    queue = Queue(server.url)
    assert queue.heads() == {"image": 1, "video": 0}
    queue.close()


async def test_a_fork_that_the_queue_missed_is_told_by_the_retry(opened, own_server, store, tmp_path):
    _, publisher = publisher_of(store, tmp_path, await opened(own_server.url, store))
    own_server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ProblemError, match="queue-away"):
        await publisher.fork("video", "base")
    own_server.process.send_signal(signal.SIGCONT)
    assert not (await publisher.fork("video", "base")).is_new
    queue = Queue(own_server.url)
    assert queue.heads() == {"video": 0}
    queue.close()


@pytest.fixture
def app(store, tmp_path):
    """Publishes what its test has staged, as the service's route does."""
    app = FastAPI()
    problems.install(app)

    @app.put("/adapters/{branch}/{number}")
    async def put(branch: str, number: int, request: Request) -> bool:
        upload = Upload(Ref(branch, number), number - 1)
        return (await publish(request.app.state.publisher, request.app.state.adapter, upload)).is_new

    return app


async def put(app, number=1):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.put(f"/adapters/image/{number}")


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_without_the_queue_a_publish_is_told_to_come_again(
    how, opened, own_server, app, store, tmp_path, adapter
):
    fence = await opened(own_server.url, store)
    app.state.adapter = adapter
    registry, app.state.publisher = publisher_of(store, tmp_path, fence)
    assert (await put(app)).json() is True
    own_server.process.send_signal({"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])
    async with asyncio.timeout(PATIENCE_S):
        answer = await put(app, 2)
    assert (answer.status_code, answer.json()["type"], answer.headers["retry-after"]) == (503, "queue-away", "2")
    assert own_server.url not in answer.text
    assert store.branch("image").head == 1
    metrics = Metrics()
    metrics.watch_queue(lambda: fence.is_up)
    assert metrics.registry.get_sample_value("coevo_queue_up") == 0
    async with registry.acquire("image") as served:
        assert served.revision == 1


async def test_a_commit_that_the_queue_missed_is_told_by_the_retry(opened, own_server, store, tmp_path, adapter):
    async def canary(handle):
        own_server.process.send_signal(signal.SIGSTOP)
        return [-1.0]

    fence = await opened(own_server.url, store)
    registry, publisher = make_publisher(store, RecordingLoader(), tmp_path / "cache", fence=fence, canary=canary)
    with pytest.raises(ProblemError) as error:
        await publish(publisher, adapter, FIRST)
    assert (error.value.type, error.value.status) == ("queue-away", 503)
    assert (store.branch("image").head, registry.heads) == (1, {"image": 1})
    own_server.process.send_signal(signal.SIGCONT)
    assert not (await publish(publisher, adapter, FIRST)).is_new
    queue = Queue(own_server.url)
    assert queue.heads() == {"image": 1}
    queue.close()


async def test_what_was_committed_is_told_by_the_watcher_if_nobody_retries(
    opened, own_server, store, runs, tmp_path, adapter
):
    async def canary(handle):
        own_server.process.send_signal(signal.SIGSTOP)
        return [-1.0]

    fence = await opened(own_server.url, store, runs)
    _, publisher = make_publisher(store, RecordingLoader(), tmp_path / "cache", fence=fence, canary=canary)
    with pytest.raises(ProblemError):
        await publish(publisher, adapter, FIRST)
    own_server.process.send_signal(signal.SIGCONT)
    queue = Queue(own_server.url)
    await until(lambda: queue.heads() == {"image": 1})
    queue.close()


async def test_an_emptied_server_is_told_what_is_on_the_disk(opened, server, store, runs, tmp_path, adapter):
    fence = await opened(server.url, store, runs)
    _, publisher = publisher_of(store, tmp_path, fence)
    queue = Queue(server.url)
    token = token_of(queue, "image")
    await publish(publisher, adapter, replace(FIRST, token=token))
    await publisher.fork("video", "image@1")
    emptied(server)
    await until(lambda: queue.identity()[0] == store.id)
    assert queue.heads() == {"image": 1, "video": 0}
    assert [await fence.is_current("image", number) for number in (token - 1, token)] == [False, True]
    assert token_of(queue, "image", 1) > token
    queue.close()


async def test_a_server_that_lost_its_last_second_is_told_it_again(opened, store, runs, tmp_path, adapter):
    """Its mark is there, so nothing looks lost: but it is another life of the server."""
    with QueueProcess(tmp_path / "queue") as server:
        fence = await opened(server.url, store, runs)
        _, publisher = publisher_of(store, tmp_path, fence)
        queue = Queue(server.url)
        await publish(publisher, adapter, replace(FIRST, token=token_of(queue, "image")))
        with server.client() as client:
            client.hdel(HEADS, "image")
        server.stop()
        server.start()
        await until(lambda: queue.heads() == {"image": 1})
        queue.close()


async def test_what_was_told_last_is_kept_when_the_service_ends(server, store, runs):
    queue = Queue(server.url)
    async with fenced_by_queue(server.url, store, runs, every_s=1000):
        queue.tell("late", "run", state="finished")
    assert runs.info("late").state == "finished"
    queue.close()


async def test_a_publish_does_not_wait_for_the_watcher(opened, server, store, tmp_path, adapter):
    fence = await opened(server.url, store)
    _, publisher = publisher_of(store, tmp_path, fence)
    await publish(publisher, adapter, replace(FIRST, token=9))
    emptied(server)
    assert [await fence.is_current("image", token) for token in (8, 9)] == [False, True]


async def test_wrong_heads_of_the_queue_are_made_right_at_the_start(opened, server, store, runs, adapter):
    queue = Queue(server.url)
    queue.reconcile(store.id, {"image": (7, 3), "gone": (1, 1)})
    await opened(server.url, store, runs)
    assert queue.heads() == {}
    queue.close()


async def test_a_queue_that_serves_another_store_is_refused(opened, server, store, runs):
    queue = Queue(server.url)
    queue.reconcile("f" * 32, {})
    with pytest.raises(OtherStoreError, match=r"serves another store .*; take another database"):
        await opened(server.url, store, runs)
    fence = await opened(server.url, store)
    with pytest.raises(ProblemError, match="queue-away: the queue serves another store"):
        await fence.is_current("image", 1)
    queue.close()


async def test_a_service_starts_without_its_queue_and_says_so_once(opened, store, runs, tmp_path, caplog):
    with start(tmp_path / "queue") as server:
        pass
    caplog.set_level(logging.WARNING, "service.publishing.fence")
    fence = await opened(server.url, store, runs)
    for _ in range(3):
        with pytest.raises(ProblemError):
            await fence.is_current("image", 1)
    (line,) = caplog.messages
    assert line.startswith(server.url)
    with start(tmp_path / "queue", port=int(server.url.split(":")[2].split("/")[0])):
        await until(lambda: fence.is_up)
        assert await fence.is_current("image", 1)
        assert len(caplog.messages) == 2


async def test_events_come_to_the_runs_files_by_themselves(opened, server, store, runs):
    await opened(server.url, store, runs)
    queue = Queue(server.url)
    queue.tell("first", "run", state="running", name="mutual", branches={"image": 9})
    await until(lambda: runs.info("first"))
    assert runs.info("first").branches["image"].last == 9
    await until(lambda: queue.events() == [])
    queue.close()
