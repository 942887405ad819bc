"""Every script, on a real server."""

import json
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import pytest
import redis

from adapters.errors import UserError
from trainer.queue.client import (
    ATTEMPTS,
    PERMANENT,
    DeadJob,
    Job,
    JobConflictError,
    Lease,
    NotReconciledError,
    OtherStoreError,
    Queue,
    QueueAwayError,
    Refusal,
    lease_key,
)
from trainer.queue.server import Server

STORE = "store-1"


@pytest.fixture(scope="module")
def raw(server: Server) -> Generator[Any]:
    client = redis.Redis.from_url(server.url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture(autouse=True)
def queue(server: Server, raw: Any) -> Generator[Queue]:
    """With two branches and no jobs. Afterwards no key lives for ever that should not."""
    raw.flushall()
    queue = Queue(server.url)
    queue.reconcile(STORE, {"image": (0, 0), "text": (0, 0)})
    yield queue
    queue.close()
    assert {key for key in raw.scan_iter() if raw.ttl(key) < 0} <= PERMANENT


def job(name: str = "a", first: int = 0, steps: int = 2, branch: str = "image", kind: str = "train") -> Job:
    return Job(name, "run", branch, kind, first, steps)


def claimed(queue: Queue, worker: str = "w1", branch: str = "image", nonce: str | None = None) -> Lease:
    reply = queue.claim(branch, worker, nonce)
    assert isinstance(reply, Lease), reply
    return reply


def run_out(raw: Any, branch: str = "image") -> None:
    """What the server does with a lease when its time is over."""
    assert raw.delete(lease_key(branch)) == 1


# ---- claim ----


def test_a_branch_without_jobs_is_empty(queue: Queue) -> None:
    assert queue.claim("image", "w1") == Refusal("empty")


def test_a_claim_gives_the_first_job(queue: Queue) -> None:
    queue.enqueue(job("a"))
    queue.enqueue(job("b", first=2))
    lease = claimed(queue)
    assert lease.job == job("a")
    assert queue.waiting(["image", "text"])["image"].jobs == (job("a"), job("b", first=2))
    assert queue.waiting(["image"])["image"].worker == "w1"


def test_a_held_branch_says_by_whom_and_how_long(queue: Queue) -> None:
    queue.enqueue(job())
    claimed(queue)
    refusal = queue.claim("image", "w2")
    assert isinstance(refusal, Refusal)
    assert (refusal.why, refusal.holder) == ("held", "w1")
    assert 0 < refusal.left_s <= queue.lease_s


def test_a_worker_takes_its_own_lease_back_with_a_newer_token(queue: Queue) -> None:
    queue.enqueue(job())
    before, after = claimed(queue), claimed(queue)
    assert after.token > before.token
    assert not queue.is_current("image", before.token)
    assert queue.renew("w1", [before]) == []
    assert queue.renew("w1", [after]) == [after]


def test_the_same_claim_has_the_same_answer(queue: Queue) -> None:
    queue.enqueue(job())
    assert claimed(queue, nonce="n") == claimed(queue, nonce="n")
    assert queue.waiting(["image"])["image"].attempts == 1


def test_branches_are_leased_each_on_their_own(queue: Queue) -> None:
    queue.enqueue(job())
    queue.enqueue(job("t", branch="text"))
    leases = [claimed(queue), claimed(queue, "w2", "text")]
    assert [lease.job.id for lease in leases] == ["a", "t"]


def test_a_worker_of_the_same_name_elsewhere_is_another(queue: Queue, server: Server) -> None:
    """Under another lock. It waits for a lease that is renewed, which costs no attempt, and takes one that ran out."""
    queue.enqueue(job())
    first_machine, second_machine = (Queue(server.url, lock=lock) for lock in ("a", "b"))
    lease = claimed(first_machine)
    for _ in range(2 * ATTEMPTS):
        assert first_machine.renew("w1", [lease]) == [lease]
        refusal = second_machine.claim("image", "w1")
        assert isinstance(refusal, Refusal)
        assert (refusal.why, refusal.holder) == ("held", "w1")
    waiting = queue.waiting(["image"])["image"]
    assert (waiting.worker, waiting.attempts) == ("w1", 1)
    assert claimed(first_machine).token > lease.token  # started again, it takes its own back
    for connection in (first_machine, second_machine):
        connection.close()


# ---- attempts ----


def test_the_fourth_claim_without_a_step_finds_it_dead(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    for attempt in range(ATTEMPTS):
        claimed(queue, f"w{attempt}")
        run_out(raw)
    assert queue.claim("image", "w4") == Refusal("dead")
    assert queue.dead() == [DeadJob("image", "a", "its worker died each time, without a word")]
    assert queue.claim("image", "w5") == Refusal("dead")


def test_a_worker_that_comes_back_under_its_name_uses_up_attempts_too(queue: Queue) -> None:
    queue.enqueue(job())
    for _ in range(ATTEMPTS):
        claimed(queue)
    assert queue.claim("image", "w1") == Refusal("dead")


def test_a_dead_job_has_the_last_error_that_was_told(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    queue.release(claimed(queue), "out of memory")
    for _ in range(ATTEMPTS - 1):
        claimed(queue)
        run_out(raw)
    assert queue.claim("image", "w1") == Refusal("dead")
    assert queue.dead() == [DeadJob("image", "a", "out of memory")]


def test_errors_told_as_often_as_there_are_attempts_end_a_job(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    answers = [queue.release(claimed(queue), f"error {number}") for number in range(ATTEMPTS - 1)]
    last = claimed(queue)
    run_out(raw)  # the name of the job is known all the same
    assert [*answers, queue.release(last, "the end")] == ["released", "released", "dead"]
    assert queue.dead() == [DeadJob("image", "a", "the end")]


def test_a_fatal_error_ends_a_job_at_once(queue: Queue) -> None:
    queue.enqueue(job())
    assert queue.release(claimed(queue), "no such data", fatal=True) == "dead"
    assert queue.claim("image", "w2") == Refusal("dead")


def test_a_published_step_is_a_new_first_attempt(queue: Queue, raw: Any) -> None:
    queue.enqueue(job(steps=9))
    for _ in range(ATTEMPTS):
        lease = claimed(queue)
    queue.advance("image", 1, lease.token)
    assert queue.waiting(["image"])["image"].attempts == 1
    run_out(raw)
    for _ in range(ATTEMPTS - 1):
        claimed(queue)
    assert queue.claim("image", "w1") == Refusal("dead")


def test_a_clean_release_does_not_count(queue: Queue) -> None:
    queue.enqueue(job())
    for _ in range(2 * ATTEMPTS):
        assert queue.release(claimed(queue)) == "released"
    assert queue.waiting(["image"])["image"].attempts == 0


def test_retry_gives_all_attempts_again(queue: Queue) -> None:
    queue.enqueue(job())
    queue.release(claimed(queue), "broken", fatal=True)
    assert queue.retry("image")
    assert queue.dead() == []
    for _ in range(ATTEMPTS):
        claimed(queue)
    assert not queue.retry("text")


def test_a_step_of_a_slow_worker_revives_a_dead_job(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    for _ in range(ATTEMPTS):
        slow = claimed(queue)
        run_out(raw)
    assert queue.claim("image", "w2") == Refusal("dead")
    assert queue.is_current("image", slow.token)
    queue.advance("image", 1, slow.token)
    assert queue.dead() == []
    assert claimed(queue, "w2").token > slow.token


# ---- renew and release ----


def test_renew_returns_those_that_are_kept(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    queue.enqueue(job("t", branch="text"))
    image, text = claimed(queue), claimed(queue, branch="text")
    run_out(raw)
    claimed(queue, "w2")
    assert queue.renew("w1", [image, text]) == [text]
    assert queue.renew("w1", []) == []


def test_renew_makes_a_lease_as_long_as_a_new_one(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    lease = claimed(queue)
    raw.pexpire(lease_key("image"), 5000)
    queue.renew("w1", [lease])
    assert 5000 < raw.pttl(lease_key("image")) <= queue.lease_s * 1000


def test_renew_gives_back_a_lease_that_ran_out_of_a_free_branch(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    lease = claimed(queue)
    run_out(raw)
    assert queue.renew("w1", [lease]) == [lease]
    refusal = queue.claim("image", "w2")
    assert isinstance(refusal, Refusal)
    assert refusal.holder == "w1"


def test_renew_does_not_give_back_what_was_released(queue: Queue) -> None:
    queue.enqueue(job())
    lease = claimed(queue)
    queue.release(lease)
    assert queue.renew("w1", [lease]) == []
    assert queue.waiting(["image"])["image"].worker is None


def test_release_of_a_lease_that_another_took_does_nothing(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    late = claimed(queue)
    run_out(raw)
    claimed(queue, "w2")
    assert queue.release(late, "too late") == "lost"
    assert queue.waiting(["image"])["image"].worker == "w2"
    assert queue.waiting(["image"])["image"].attempts == 2


# ---- jobs and heads ----


def test_a_job_is_enqueued_once(queue: Queue) -> None:
    assert queue.enqueue(job()) == "enqueued"
    assert queue.enqueue(job()) == "there"
    queue.advance("image", 2, None)
    assert queue.enqueue(job()) == "done"
    assert queue.waiting(["image"])["image"].jobs == ()


def test_another_job_of_the_same_name_is_a_conflict(queue: Queue) -> None:
    queue.enqueue(job())
    with pytest.raises(JobConflictError, match="a: there is another job of that name"):
        queue.enqueue(job(kind="merge"))
    assert queue.waiting(["image"])["image"].jobs == (job(),)


def test_a_branch_takes_no_jobs_of_two_runs(queue: Queue) -> None:
    queue.enqueue(job())
    foreign = Job("other:image:2", "other", "image", "train", 2, 2)
    with pytest.raises(JobConflictError, match="image: the queue has jobs of run for it, and this is other; give"):
        queue.enqueue(foreign)
    assert queue.waiting(["image"])["image"].jobs == (job(),)
    queue.advance("image", 2, None)
    assert queue.enqueue(foreign) == "enqueued"  # the first has nothing left to do


def test_advance_told_again_changes_nothing(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    lease = claimed(queue)
    queue.advance("image", 1, lease.token)
    before = {key: raw.dump(key) for key in raw.scan_iter()}
    queue.advance("image", 1, lease.token)
    assert {key: raw.dump(key) for key in raw.scan_iter()} == before


def test_advance_never_lowers_a_head(queue: Queue) -> None:
    queue.advance("image", 5, None)
    queue.advance("image", 3, None)
    assert queue.heads() == {"image": 5, "text": 0}


def test_a_head_at_a_jobs_end_is_the_end_of_it(queue: Queue) -> None:
    jobs = [job("a"), job("b", first=2), job("c", first=4)]
    for queued in jobs:
        queue.enqueue(queued)
    queue.advance("image", 1, None)
    assert queue.waiting(["image"])["image"].jobs == tuple(jobs)
    queue.advance("image", 4, None)
    assert queue.waiting(["image"])["image"].jobs == tuple(jobs[2:])


def test_advance_makes_an_unknown_token_the_newest(queue: Queue) -> None:
    queue.advance("image", 1, 7)
    assert not queue.is_current("image", 6)
    assert queue.is_current("image", 7)


def test_without_a_token_a_branch_is_free_while_nobody_works_on_it(queue: Queue) -> None:
    queue.enqueue(job())
    assert queue.is_current("image", None)
    lease = claimed(queue)
    assert not queue.is_current("image", None)
    queue.release(lease)
    assert queue.is_current("image", None)


# ---- reconcile ----


def test_reconcile_takes_heads_from_the_store_and_lowers_no_token(queue: Queue) -> None:
    queue.enqueue(job(steps=9))
    lease = claimed(queue)
    assert not queue.reconcile(STORE, {"image": (3, 5), "text": (1, 9)})
    assert queue.heads() == {"image": 3, "text": 1}
    assert queue.is_current("image", lease.token)
    assert not queue.is_current("image", lease.token - 1)
    assert not queue.is_current("text", 8)


def test_reconcile_removes_what_is_done_and_forgets_what_is_not_stored(queue: Queue) -> None:
    queue.enqueue(job("a"))
    queue.enqueue(job("b", first=2))
    queue.reconcile(STORE, {"image": (3, 0)})
    assert queue.heads() == {"image": 3}
    assert queue.waiting(["image"])["image"].jobs == (job("b", first=2),)


def test_a_queue_serves_one_store(queue: Queue) -> None:
    with pytest.raises(OtherStoreError, match=r"serves another store \(store-1\).*redis-cli flushdb"):
        queue.reconcile("store-2", {"image": (9, 9)})
    assert queue.heads()["image"] == 0
    assert queue.identity()[0] == STORE


# ---- a server that forgot ----


def test_without_reconcile_nothing_is_leased(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    lease = claimed(queue)
    raw.flushall()
    with pytest.raises(NotReconciledError, match="waits for the service"):
        queue.claim("image", "w1")
    assert queue.renew("w1", [lease]) == [lease]
    assert queue.reconcile(STORE, {"image": (0, 0)})
    assert queue.renew("w1", [lease]) == [lease]
    queue.enqueue(job())
    assert isinstance(queue.claim("image", "w2"), Refusal)


def test_tokens_grow_even_if_everything_was_lost(queue: Queue, raw: Any) -> None:
    tokens: list[int] = []
    for _ in range(3):
        queue.enqueue(job())
        tokens += [claimed(queue).token, claimed(queue).token]
        raw.flushall()
        queue.reconcile(STORE, {"image": (0, 0)})
    assert tokens == sorted(set(tokens))


def test_scripts_are_sent_again_to_a_server_that_lost_them(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    raw.script_flush()
    lease = claimed(queue)
    raw.script_flush()
    assert queue.renew("w1", [lease]) == [lease]
    raw.script_flush()
    queue.advance("image", 1, lease.token)
    raw.script_flush()
    assert queue.release(lease) == "released"


def test_a_workers_clock_changes_nothing(queue: Queue, server: Server) -> None:
    """A claim by a process one hour ahead or behind: tokens go on, the lease is as long as any."""
    queue.enqueue(job())
    first = claimed(queue)
    queue.release(first)
    code = (
        "import sys, time\n"
        "shift, true = float(sys.argv[1]), {name: getattr(time, name) for name in ('time', 'monotonic')}\n"
        "time.time, time.monotonic = lambda: true['time']() + shift, lambda: true['monotonic']() + shift\n"
        "from trainer.queue.client import Queue\n"
        "lease = Queue(sys.argv[2]).claim('image', 'shifted')\n"
        "print(lease.token)"
    )
    tokens = [first.token]
    for shift in ("3600", "-3600"):
        child = subprocess.run(
            [sys.executable, "-c", code, shift, server.url], capture_output=True, text=True, check=True
        )
        tokens.append(int(child.stdout))
        held = queue.claim("image", "w2")
        assert isinstance(held, Refusal)
        assert 0 < held.left_s <= queue.lease_s
    assert tokens[0] < tokens[1] < tokens[2] < tokens[0] + 1_800_000_000  # microseconds of the server's clock


# ---- runs, events, news ----


def test_runs_are_kept(queue: Queue) -> None:
    queue.put_run("r", {"state": "running"})
    queue.put_run("r", {"state": "ended"})
    assert queue.runs() == {"r": {"state": "ended"}}


def test_the_first_to_ask_decides_for_a_run(queue: Queue) -> None:
    assert [queue.agree("r", "seed", value) for value in ("1", "2")] == ["1", "1"]
    assert queue.agree("other", "seed", "2") == "2"


def test_events_stay_until_they_are_forgotten(queue: Queue) -> None:
    queue.tell("r", "step", number=1)
    queue.tell("r", "step", number=2)
    names, events = zip(*queue.events(), strict=True)
    assert events == ({"run": "r", "kind": "step", "number": 1}, {"run": "r", "kind": "step", "number": 2})
    assert len(queue.events(most=1)) == 1
    queue.forget(names[:1])
    assert [event["number"] for _, event in queue.events()] == [2]


def test_every_change_is_news(queue: Queue, raw: Any) -> None:
    """That a waiting worker or the coordinator may want to know."""
    newest = queue.last_news()
    assert queue.news(newest, 0.001) == newest
    changes = {
        "enqueued": lambda: queue.enqueue(job(steps=9)),
        "advanced": lambda: queue.advance("image", 1, claimed(queue).token),
        "released": lambda: queue.release(claimed(queue)),
        "dead": lambda: queue.release(claimed(queue), "broken", fatal=True),
        "retried": lambda: queue.retry("image"),
    }
    for kind, change in changes.items():
        change()
        heard = queue.news(newest, 0.5)
        assert heard == queue.last_news() != newest
        (entry,) = raw.xrevrange("coevo:news", count=1)
        assert entry[1] == {kind: "image"}
        newest = heard


def test_a_record_is_json(queue: Queue, raw: Any) -> None:
    queue.enqueue(job())
    ((_, fields),) = raw.xrange("coevo:jobs:image")
    assert json.loads(fields["job"]) == {
        "id": "a", "run": "run", "branch": "image", "kind": "train", "first": 0, "steps": 2
    }  # fmt: skip


@pytest.mark.parametrize("url", ["redis://user:secret@127.0.0.1:1/0", "redis://:secret@127.0.0.1:1/0"])
def test_a_server_that_is_not_there_is_away(url: str) -> None:
    with pytest.raises(QueueAwayError, match=r"redis://127\.0\.0\.1:1/0: the queue server does not answer") as error:
        Queue(url).heads()
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_url_of_something_else_is_said() -> None:
    with pytest.raises(UserError, match="no queue server's URL"):
        Queue("http://127.0.0.1:1")


def test_a_wrong_password_is_no_server_that_may_come_back(server: Server) -> None:
    with pytest.raises(UserError, match="refuses its user or password") as error:
        Queue(server.url.replace("redis://", "redis://nobody:secret@")).runs()
    assert not isinstance(error.value, QueueAwayError)
    assert "secret" not in str(error.value)
