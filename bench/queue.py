"""What the queue does in a second, and how soon a waiting worker has a job, with 1 to 64 workers.

    coevo bench queue [--json FILE] [--most 64]

A server of its own is started. Workers are forked processes with a connection each, as real ones are: threads would
share one interpreter, and its lock would be measured. They share this machine's cores with the server.

claims      every worker claims branches that have one job each; the peer is XREADGROUP and XACK of as many entries
publishes   every worker asks whether its token is current and advances its branch; beside one worker
dispatch    a job is enqueued on the branch of one of the workers, which all listen to the news; until it holds the
            lease. The peer is XADD until one of as many blocked consumers has the entry by XREADGROUP and XACK
renewals    all leases of a process in one call; beside one lease
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis

from bench.command import positive
from trainer.queue.client import Job, Lease, Queue
from trainer.queue.server import start

MOST = 64
OPERATIONS = 1024
DISPATCHES = 32
STREAM, GROUP = "peer", "workers"
FORK = multiprocessing.get_context("fork")

Row = dict[str, Any]
Worker = Callable[[str, int, int, Callable[[], Any]], list[float]]
"""URL, its number, how many workers there are, what it waits for once it is connected; what each operation took."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="claims, publishes and dispatch of the queue with 1 to 64 workers")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--most", type=positive, default=MOST, metavar="N", help="workers at most (default: 64)")


def run(arguments: argparse.Namespace) -> int:
    counts = [1 << power for power in range(arguments.most.bit_length())]
    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as server:
        rows = [
            *(row for count in counts for row in _claims(server.url, count)),
            *_publishes(server.url, counts),
            *(row for count in counts for row in _dispatch(server.url, count)),
            *_renewals(server.url, counts),
        ]
    for row in rows:
        print(f"{row['what']}: {row['ours']:.5g} {row['unit']}, {row['peer']} {row['theirs']:.5g}, x{row['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _row(label: str, unit: str, value: float, peer: str, peer_value: float) -> Row:
    return {"what": label, "unit": unit, "ours": value, "peer": peer, "theirs": peer_value, "ratio": value / peer_value}


# ---- claims ----


def _claims(url: str, count: int) -> list[Row]:
    _prepare(url, [_job(_branch(number)) for number in range(OPERATIONS)])
    with _client(url) as client, client.pipeline() as pipe:
        client.xgroup_create(STREAM, GROUP, mkstream=True)
        for number in range(OPERATIONS):
            pipe.xadd(STREAM, {"job": json.dumps({"id": _branch(number)})})
        pipe.execute()
    claims, rate = _together(url, count, _claim_all)
    reads, their_rate = _together(url, count, _read_all)
    label, peer = f"queue: claim, {count} workers", "XREADGROUP + XACK"
    return [
        _row(label, "1/s", rate, peer, their_rate),
        *(
            _row(f"{label}, p{part}", "ms", _percentile(claims, part), peer, _percentile(reads, part))
            for part in (50, 99)
        ),
    ]


def _claim_all(url: str, number: int, count: int, ready: Callable[[], Any]) -> list[float]:
    queue = Queue(url)
    worker = f"w{number}"
    queue.heads()
    ready()
    branches = [_branch(index) for index in range(number, OPERATIONS, count)]
    return [_took(lambda branch=branch: _claimed(queue, branch, worker)) for branch in branches]


def _read_all(url: str, number: int, count: int, ready: Callable[[], Any]) -> list[float]:
    with _client(url) as client:
        client.ping()
        ready()
        return [_took(lambda: _read(client, number, None)) for _ in range(OPERATIONS // count)]


def _read(client: Any, number: int, block_ms: int | None) -> bool:
    entries = client.xreadgroup(GROUP, f"w{number}", {STREAM: ">"}, count=1, block=block_ms)
    if entries:
        client.xack(STREAM, GROUP, entries[0][1][0][0])
    return bool(entries)


# ---- publishes ----


def _publishes(url: str, counts: Sequence[int]) -> list[Row]:
    rates: list[float] = []
    for count in counts:
        _prepare(url, [_job(_branch(number), OPERATIONS + 1) for number in range(count)])
        rates.append(_together(url, count, _publish_all)[1])
    return [
        _row(f"queue: fenced publish, {count} workers", "1/s", rate, "1 worker", rates[0])
        for count, rate in zip(counts, rates, strict=True)
    ]


def _publish_all(url: str, number: int, count: int, ready: Callable[[], Any]) -> list[float]:
    queue, branch = Queue(url), _branch(number)
    token = _claimed(queue, branch, f"w{number}").token

    def publish(revision: int) -> None:
        assert queue.is_current(branch, token)
        queue.advance(branch, revision, token)

    ready()
    return [_took(lambda revision=revision: publish(revision)) for revision in range(1, OPERATIONS // count + 1)]


# ---- dispatch ----


def _dispatch(url: str, count: int) -> list[Row]:
    _prepare(url, [])
    queue, draw = Queue(url), random.Random(count)
    steps = dict.fromkeys(range(count), 0)

    def enqueue() -> None:
        number = draw.randrange(count)
        queue.enqueue(_job(_branch(number), 1, first=steps[number]))
        steps[number] += 1

    with _client(url) as client:
        client.xgroup_create(STREAM, GROUP, mkstream=True)
        news = _waited(url, count, _wait_for_news, enqueue)
        entries = _waited(url, count, _wait_for_entries, lambda: client.xadd(STREAM, {"job": "{}"}))
    return [
        _row(
            f"queue: dispatch, {count} workers wait, p{part}", "ms", _percentile(news, part),
            "XADD, XREADGROUP + XACK", _percentile(entries, part),
        )
        for part in (50, 99)
    ]  # fmt: skip


def _waited(url: str, count: int, wait: Callable[..., None], add: Callable[[], Any]) -> list[float]:
    """From each `add` until a worker says when it had the job; the next once all is quiet again."""
    ready, times, ended = FORK.Barrier(count + 1), FORK.SimpleQueue(), FORK.Event()
    workers = [FORK.Process(target=wait, args=(url, number, ready, times, ended)) for number in range(count)]
    for worker in workers:
        worker.start()
    ready.wait()
    took: list[float] = []
    for _ in range(DISPATCHES):
        time.sleep(0.01 + 0.001 * count)  # the others look at the last news meanwhile
        began = time.monotonic()
        add()
        took.append(times.get() - began)
    ended.set()
    for worker in workers:
        worker.join()
    return took


def _wait_for_news(url: str, number: int, ready: Any, times: Any, ended: Any) -> None:
    queue, branch = Queue(url), _branch(number)
    newest, revision = queue.last_news(), 0
    ready.wait()
    while not ended.is_set():
        heard = queue.news(newest, 0.4)
        if heard == newest:
            continue
        newest = heard
        lease = queue.claim(branch, f"w{number}")
        if isinstance(lease, Lease):
            times.put(time.monotonic())
            revision += 1
            queue.advance(branch, revision, lease.token)
            queue.release(lease)


def _wait_for_entries(url: str, number: int, ready: Any, times: Any, ended: Any) -> None:
    with _client(url) as client:
        client.ping()
        ready.wait()
        while not ended.is_set():
            if _read(client, number, 400):
                times.put(time.monotonic())


# ---- renewals ----


def _renewals(url: str, counts: Sequence[int]) -> list[Row]:
    _prepare(url, [_job(_branch(number)) for number in range(max(counts))])
    queue = Queue(url)
    leases = [_claimed(queue, _branch(number), "w") for number in range(max(counts))]
    took = [
        _percentile([_took(lambda count=count: queue.renew("w", leases[:count])) for _ in range(200)], 50)
        for count in counts
    ]
    return [
        _row(f"queue: renewal of {count} leases in one call, p50", "ms", p50, "1 lease", took[0])
        for count, p50 in zip(counts, took, strict=True)
    ]


# ---- what they share ----


def _together(url: str, count: int, work: Worker) -> tuple[list[float], float]:
    """What each operation of all workers took, and how many were done in a second."""
    ready, results = FORK.Barrier(count + 1), FORK.SimpleQueue()

    def child(number: int) -> None:
        results.put((work(url, number, count, ready.wait), time.monotonic()))

    workers = [FORK.Process(target=child, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.monotonic()
    reports = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    took = [seconds for times, _ in reports for seconds in times]
    return took, len(took) / (max(ended for _, ended in reports) - began)


def _prepare(url: str, jobs: Sequence[Job]) -> None:
    queue = Queue(url)
    with _client(url) as client:
        client.flushall()
    queue.reconcile("bench", {})
    for job in jobs:
        queue.enqueue(job)
    queue.close()


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True)


def _branch(number: int) -> str:
    return f"b{number}"


def _job(branch: str, steps: int = 1, first: int = 0) -> Job:
    return Job(f"{branch}-{first}", "bench", branch, "train", first, steps)


def _claimed(queue: Queue, branch: str, worker: str) -> Lease:
    lease = queue.claim(branch, worker)
    assert isinstance(lease, Lease), lease
    return lease


def _took(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _percentile(seconds: Sequence[float], part: int) -> float:
    return 1000 * float(np.percentile(seconds, part))


if __name__ == "__main__":
    sys.exit(main())
