"""What the queue is worth when its server is killed, frozen, full, busy or empty."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.queue_process import QueueProcess
from trainer.queue.client import Job, Lease, Queue, QueueAwayError
from trainer.queue.server import find

STORE = "store"
JOB = Job("a", "run", "image", "train", 0, 50)
WITHIN_S = 5.0


@pytest.fixture
def server(tmp_path: Path) -> Generator[QueueProcess]:
    with QueueProcess(tmp_path / "queue") as server:
        yield server


@pytest.fixture
def queue(server: QueueProcess) -> Generator[Queue]:
    """Quick to give up, and with one job."""
    queue = Queue(server.url, timeout_s=0.25)
    queue.reconcile(STORE, {"image": (0, 0)})
    queue.enqueue(JOB)
    yield queue
    queue.close()


def claimed(queue: Queue, worker: str = "w1") -> Lease:
    lease = queue.claim("image", worker)
    assert isinstance(lease, Lease), lease
    return lease


def calls(queue: Queue, lease: Lease) -> dict[str, Callable[[], Any]]:
    """Every call that writes."""
    return {
        "claim": lambda: queue.claim("image", "w1"),
        "renew": lambda: queue.renew("w1", [lease]),
        "advance": lambda: queue.advance("image", 1, lease.token),
        "enqueue": lambda: queue.enqueue(Job("b", "run", "image", "train", 50, 2)),
        "reconcile": lambda: queue.reconcile(STORE, {"image": (0, 0)}),
        "tell": lambda: queue.tell("run", "step"),
        "agree": lambda: queue.agree("run", "seed", "1"),
        "put_run": lambda: queue.put_run("run", {}),
        "release": lambda: queue.release(lease),
    }


def reads(queue: Queue) -> dict[str, Callable[[], Any]]:
    return {
        "is_current": lambda: queue.is_current("image", 1),
        "heads": queue.heads,
        "runs": queue.runs,
        "waiting": lambda: queue.waiting(["image"]),
        "dead": queue.dead,
        "events": queue.events,
        "news": lambda: queue.news("$", 0.05),
    }


def contents(server: QueueProcess) -> dict[str, Any]:
    with server.client() as client:
        kinds = {key: client.type(key) for key in client.scan_iter()}
        ask = {"hash": client.hgetall, "stream": client.xrange, "string": client.get}
        return {key: ask[kind](key) for key, kind in kinds.items()}


def eventually(call: Callable[[], Any]) -> Any:
    """Until the server takes something again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return call()
        except QueueAwayError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_restart_loses_nothing(server: QueueProcess, queue: Queue) -> None:
    """The same connection goes on."""
    lease = claimed(queue)
    queue.advance("image", 3, lease.token)
    before = contents(server)
    server.stop()
    with pytest.raises(QueueAwayError):
        queue.heads()
    server.start()
    assert contents(server) == before
    assert queue.renew("w1", [lease]) == [lease]
    assert queue.is_current("image", lease.token)
    assert claimed(queue).token > lease.token


def test_a_kill_that_loses_the_last_second_gives_no_token_twice(server: QueueProcess, queue: Queue) -> None:
    published = claimed(queue)
    disk = {"image": (1, published.token)}
    queue.advance("image", 1, published.token)
    queue.release(published)
    copy = server.folder.with_name("kept")
    shutil.copytree(server.folder / "appendonlydir", copy)
    lost = claimed(queue)
    server.kill()
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(copy, server.folder / "appendonlydir")
    server.start()
    queue.reconcile(STORE, disk)
    assert queue.waiting(["image"])["image"].worker is None  # that claim is forgotten
    successor = claimed(queue, "w2")
    assert successor.token > lost.token > published.token
    assert queue.renew("w1", [lost]) == []
    assert not queue.is_current("image", lost.token)


def test_an_empty_server_is_filled_from_the_store(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    server.empty()
    assert queue.identity()[0] != STORE
    assert queue.reconcile(STORE, {"image": (7, lease.token)})
    assert queue.heads() == {"image": 7}
    assert queue.waiting(["image"])["image"].jobs == ()
    assert not queue.is_current("image", lease.token - 1)


def test_a_frozen_server_is_away_until_it_wakes(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    server.freeze()
    for call in (lambda: queue.renew("w1", [lease]), lambda: queue.news("$", 0.05)):
        with pytest.raises(QueueAwayError, match="does not answer"):
            call()
    server.thaw()
    assert eventually(lambda: queue.renew("w1", [lease])) == [lease]


@pytest.mark.reference
def test_no_call_waits_longer_than_it_may(server: QueueProcess, queue: Queue) -> None:
    """With the time-outs as they are, on old and on new connections."""
    lease = claimed(queue)
    took: list[float] = []

    def ask(name: str, connection: Queue) -> None:
        began = time.monotonic()
        with pytest.raises(QueueAwayError):
            (calls(connection, lease) | reads(connection))[name]()
        took.append(time.monotonic() - began)

    names = [*calls(queue, lease), *reads(queue)]
    named_queues = [(name, Queue(server.url)) for name in names for _ in range(2)]
    for _, connection in named_queues[::2]:
        connection.heads()
    server.freeze()
    threads = [threading.Thread(target=ask, args=named) for named in named_queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.thaw()
    for _, connection in named_queues:
        connection.close()
    assert len(took) == len(named_queues)
    assert max(took) < WITHIN_S


def test_claims_that_a_frozen_server_finds_when_it_wakes_are_one_attempt(server: QueueProcess, queue: Queue) -> None:
    server.freeze()
    for _ in range(3):
        with pytest.raises(QueueAwayError):
            queue.claim("image", "w1")
    server.thaw()
    assert eventually(lambda: claimed(queue)).job == JOB
    assert queue.waiting(["image"])["image"].attempts == 1


def test_a_full_server_takes_nothing_and_keeps_what_it_has(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    before = contents(server)
    with server.client() as client:
        client.config_set("maxmemory", 1)
        for call in calls(queue, lease).values():
            with pytest.raises(QueueAwayError, match="can take nothing now"):
                call()
        for read in reads(queue).values():
            read()
        assert contents(server) == before
        client.config_set("maxmemory", 0)
    queue.advance("image", 1, lease.token)
    assert queue.heads() == {"image": 1}


def test_a_full_disk_leaves_nothing_half_written(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    server.limit_files(log.stat().st_size + 50)

    def is_full() -> bool:
        with server.client() as client:
            return client.info("persistence")["aof_last_write_status"] == "err"

    while not is_full():
        queue.tell("run", "step")
    before = contents(server)
    for call in calls(queue, lease).values():
        with pytest.raises(QueueAwayError, match="MISCONF"):
            call()
    assert contents(server) == before
    server.limit_files(None)
    eventually(lambda: queue.advance("image", 1, lease.token))
    after = contents(server)
    server.stop()
    server.start()
    assert contents(server) == after


def test_a_busy_server_is_away_until_its_script_ends(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    before = contents(server)
    with server.client() as client, server.client() as script_client:
        client.config_set("busy-reply-threshold", 10)

        def keep_busy() -> None:
            with pytest.raises(Exception, match="killed"):
                script_client.eval("while true do end", 0)

        busy = threading.Thread(target=keep_busy)
        busy.start()
        deadline = time.monotonic() + 30
        while not _says_busy(queue):
            assert time.monotonic() < deadline
        for call in calls(queue, lease).values():
            with pytest.raises(QueueAwayError, match="BUSY"):
                call()
        client.script_kill()
        busy.join()
    assert contents(server) == before
    assert queue.renew("w1", [lease]) == [lease]


def _says_busy(queue: Queue) -> bool:
    try:
        queue.heads()
    except QueueAwayError as error:
        return "BUSY" in str(error)
    return False


@pytest.mark.reference
def test_a_loading_server_is_away_until_it_has_loaded(server: QueueProcess, queue: Queue) -> None:
    lease = claimed(queue)
    with server.client() as client, client.pipeline(transaction=False) as pipe:
        for number in range(30_000):
            pipe.set("filler", number)
        pipe.execute()
    server.kill()
    said: set[str] = set()
    with loading_slowly(server), contextlib.closing(Queue(server.url)) as patient:
        while not any("loading" in text for text in said):
            try:
                patient.heads()
            except QueueAwayError as error:
                said.add(str(error))
            else:
                pytest.fail(f"it had loaded before it said so: {said}")
        assert eventually(lambda: patient.renew("w1", [lease])) == [lease]


@contextlib.contextmanager
def loading_slowly(server: QueueProcess) -> Generator[None]:
    """A server on the same folder and port that needs seconds to read its file."""
    slowly = {"key-load-delay": 20, "appendonly": "yes", "port": server.port, "bind": "127.0.0.1"}
    words = [str(word) for key, value in slowly.items() for word in (f"--{key}", value)]
    with (server.folder / "slow.log").open("wb") as log:
        process = subprocess.Popen([find().source, *words, "--dir", str(server.folder)], stdout=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def test_clients_killed_at_any_moment_leave_whole_changes(server: QueueProcess) -> None:
    """Every claim, publish and release of a worker happens whole and once, however often its connection is cut."""
    queue = Queue(server.url)
    queue.reconcile(STORE, {"image": (0, 0)})
    queue.enqueue(JOB)
    ended = threading.Event()

    def cut() -> None:
        with server.client() as client:
            while not ended.wait(0.002):
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    cutter = threading.Thread(target=cut)
    cutter.start()
    tokens: list[int] = []
    for revision in range(1, JOB.steps + 1):
        lease = eventually(lambda: claimed(queue))
        tokens.append(lease.token)
        eventually(lambda lease=lease, revision=revision: queue.advance("image", revision, lease.token))
        assert eventually(lambda lease=lease: queue.release(lease)) in ("released", "lost")
    ended.set()
    cutter.join()
    assert tokens == sorted(set(tokens))
    assert queue.heads() == {"image": JOB.steps}
    assert queue.dead() == []
    (waiting,) = queue.waiting(["image"]).values()
    assert (waiting.jobs, waiting.worker, waiting.attempts) == ((), None, 0)
    queue.close()
