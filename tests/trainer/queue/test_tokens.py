"""Tokens that no lease ever had, and clocks that jump: on a real server."""

import logging
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from trainer.queue.client import Job, Lease, Queue, Refusal, lease_key
from trainer.queue.server import Server, start
from trainer.queue.tokens import MAX_TOKEN, may_publish

STORE = "store-1"
MADE_UP = 9999999999999999
JOB = Job("a", "run", "image", "rlvr", 0, 50)
HOUR_S = 3600


@pytest.fixture
def raw(server: Server) -> Generator[Any]:
    client = redis.Redis.from_url(server.url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def queue(server: Server, raw: Any) -> Generator[Queue]:
    raw.flushall()
    queue = filled(Queue(server.url))
    yield queue
    queue.close()


def filled(queue: Queue, token: int = 0) -> Queue:
    """With one branch and its job; the token is the newest in the store."""
    queue.reconcile(STORE, {"image": (0, token)})
    queue.enqueue(JOB)
    return queue


def claimed(queue: Queue, worker: str = "w1") -> Lease:
    reply = queue.claim("image", worker)
    assert isinstance(reply, Lease), reply
    return reply


def test_only_a_token_that_the_server_can_have_given_may_publish(queue: Queue) -> None:
    lease = claimed(queue)
    assert queue.is_current("image", lease.token)
    day = 24 * HOUR_S * 1_000_000
    wrong = (MADE_UP, MAX_TOKEN, lease.token + day, 10**30)
    assert [queue.is_current("image", token) for token in wrong] == [False] * len(wrong)


def test_a_made_up_token_in_the_store_leaves_the_fence_whole(
    queue: Queue, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    raw.flushall()
    with caplog.at_level(logging.WARNING):
        filled(queue, MADE_UP)
    (message,) = caplog.messages
    assert f"image: a revision was published under the token {MADE_UP}, which is ahead of the clock of" in message
    assert "its fence leaves it out" in message
    first, second = claimed(queue), claimed(queue)
    assert first.token < second.token <= MAX_TOKEN
    assert not queue.is_current("image", first.token)
    assert queue.is_current("image", second.token)


def test_a_server_that_took_a_made_up_token_forgets_it_at_the_next_claim(queue: Queue, raw: Any) -> None:
    raw.hset("coevo:tokens", "image", MADE_UP)
    assert not queue.is_current("image", MADE_UP)
    tokens = [claimed(queue).token for _ in range(2)]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < MADE_UP
    assert [queue.is_current("image", token) for token in (*tokens, MADE_UP)] == [False, True, False]


def test_a_made_up_lease_is_not_renewed(queue: Queue) -> None:
    lease = claimed(queue)
    forged = Lease("image", MADE_UP, "n", lease.job)
    assert queue.renew("w2", [forged]) == []
    assert queue.renew("w1", [lease]) == [lease]


def test_a_made_up_token_that_is_told_is_not_the_newest(queue: Queue) -> None:
    lease = claimed(queue)
    queue.advance("image", 1, MADE_UP)
    assert queue.heads() == {"image": 1}
    assert queue.is_current("image", lease.token)


def test_what_may_publish_follows_from_the_newest_token_and_the_clock() -> None:
    now = 1_000_000_000_000_000
    assert may_publish(now - 5, newest=now - 5, now=now)
    assert not may_publish(now - 6, newest=now - 5, now=now)
    assert may_publish(now - 1, newest=now - 5, now=now), "a server that lost its last second"
    assert not may_publish(now + 1, newest=now - 5, now=now)
    assert may_publish(now + 5, newest=now + 5, now=now), "a server whose clock was set back"
    assert not may_publish(MADE_UP, newest=MADE_UP, now=now)


# ---- a server whose clock jumps ----

SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

// The seconds in the file are added to the wall clock; the monotonic one is left alone, as when a person sets a clock.
static long shift(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("SHIFT_FILE"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, at);
    if (clock == CLOCK_REALTIME) at->tv_sec += shift();
    return status;
}
int gettimeofday(struct timeval *at, void *zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(at, zone);
    at->tv_sec += shift();
    return status;
}
time_t time(time_t *at) {
    struct timeval now;
    gettimeofday(&now, NULL);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def shifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Server, Callable[[int], None]]]:
    """A server, and what sets its clock off by so many seconds."""
    library, file = tmp_path / "clock.so", tmp_path / "shift"
    (tmp_path / "clock.c").write_text(SHIFTED_CLOCK)
    compiler = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c"), "-ldl"]
    try:
        subprocess.run(compiler, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no compiler of C")
    monkeypatch.setenv("SHIFT_FILE", str(file))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with start(tmp_path / "queue") as server, redis.Redis.from_url(server.url) as raw:
        monkeypatch.delenv("LD_PRELOAD")

        def set_clock(seconds: int) -> None:
            (tmp_path / "draft").write_text(str(seconds))
            (tmp_path / "draft").rename(file)
            # A server looks at the clock now and then. Without effect the library would let this wait for ever.
            while abs(cast(Any, raw.time())[0] - time.time() - seconds) > HOUR_S / 2:
                time.sleep(0.01)

        yield server, set_clock


def test_a_server_clock_that_jumps_gives_no_token_twice(shifted: tuple[Server, Callable[[int], None]]) -> None:
    server, set_clock = shifted
    queue = filled(Queue(server.url))
    tokens = [claimed(queue).token]
    for shift in (HOUR_S, -HOUR_S, 0):
        set_clock(shift)
        lease = claimed(queue)
        tokens.append(lease.token)
        assert [queue.is_current("image", token) for token in tokens] == [False] * (len(tokens) - 1) + [True]
        assert queue.renew("w1", [lease]) == [lease]
        queue.advance("image", len(tokens), lease.token)  # else the claims would use up its attempts
    assert tokens == sorted(set(tokens))
    queue.close()


def test_a_clock_that_jumps_ahead_costs_no_live_lease(shifted: tuple[Server, Callable[[int], None]]) -> None:
    server, set_clock = shifted
    queue = filled(Queue(server.url))
    lease = claimed(queue)
    set_clock(HOUR_S)
    assert queue.waiting(["image"])["image"].worker is None  # all leases ran out at once
    assert queue.renew("w1", [lease]) == [lease]
    assert isinstance(queue.claim("image", "w2"), Refusal)
    queue.close()


def test_a_clock_that_is_set_back_holds_no_branch_for_an_hour(shifted: tuple[Server, Callable[[int], None]]) -> None:
    """The lease of a worker that died before: it runs out when any does."""
    server, set_clock = shifted
    queue = filled(Queue(server.url))
    claimed(queue)
    impatient = Queue(server.url, lease_s=5.0)
    set_clock(-HOUR_S)
    with redis.Redis.from_url(server.url, decode_responses=True) as raw:
        assert raw.pttl(lease_key("image")) > queue.lease_s * 1000
        refusal = impatient.claim("image", "w2")
        assert isinstance(refusal, Refusal)
        assert impatient.lease_s < refusal.left_s <= queue.lease_s  # the length that the holder goes by
        assert raw.pttl(lease_key("image")) <= queue.lease_s * 1000
    queue.close()
    impatient.close()
