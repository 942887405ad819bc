"""The queue: who works on which branch, up to where it has come, and what happened.

A job is a segment of a plan. A branch's jobs are one stream, and the current job is its first entry; the lease says who
works on it, the token says since when. A token is current while no newer one is known, so a worker whose lease ran out
unnoticed (the server was away) may still publish, and one whose branch went to another may not. A job is done when its
branch's head has reached its end: nothing else says so, and nothing has to be acknowledged.

The store is the truth and all this an index of it, which `reconcile` rebuilds. Every change is one script in `lua/`,
all time is the server's. A key goes after 30 days without a write, but for those in `PERMANENT`.

Left out: what is in a job (`plan`), and finding or starting a server (`server`). Imports nothing of `trainer` outside
this folder, because the service uses it too.
"""

import json
import logging
import re
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from adapters.errors import UserError
from trainer.queue.jobs import DeadJob, Job, Lease, Refusal, Waiting
from trainer.queue.tokens import MOST_AHEAD_US, may_publish

LEASE_S = 30.0
"""How long a branch waits for a worker that died. Much less, and a worker that only hangs loses its branch."""
ATTEMPTS = 3
"""Failures of a job without a step in between, after which it is dead: three in a row are no chance."""
KEPT_S = 30 * 24 * 3600
"""Without a write a key goes: nobody tidies up after a run. Longer than a run may stand still to be mended."""
MOST_EVENTS = 100_000
"""If no service takes them. Far more than a run tells, far less than a server's memory."""

# Named here and nowhere in the scripts: a key that a script touches must be among its KEYS.
HEADS, TOKENS, STORE = "coevo:heads", "coevo:tokens", "coevo:store"
DEAD, NEWS, EVENTS, RUNS = "coevo:dead", "coevo:news", "coevo:events", "coevo:runs"
PERMANENT = frozenset({HEADS, TOKENS, STORE})

_UNDER = "\n"
"""Between a worker and its lock in a lease: no name has it."""

# In a transaction the client puts before it which command of several it was.
_CANNOT_NOW = re.compile("(^|caused error: )(MISCONF|BUSY|NOREPLICAS) ")

Entry = tuple[str, dict[str, str]]

log = logging.getLogger(__name__)


class QueueAwayError(UserError):
    """The server does not answer, or can take nothing. It may again."""


class NotReconciledError(UserError):
    """The server knows nothing of the store yet: the service tells it."""


class JobConflictError(UserError):
    """Another job has the same id, or the branch is another run's."""


class OtherStoreError(UserError):
    """The server serves another store."""


class Queue:
    """One connection; give each thread its own. A call ends within seconds, whatever the server does."""

    def __init__(self, url: str, *, lease_s: float = LEASE_S, timeout_s: float = 1.0, lock: str = "") -> None:
        """`lock` is the name of one that this process holds: then a lease is a worker's own only under the same lock.

        Two machines may have workers of one name, and one that takes the other's lease would lose it again at once.
        """
        self.url = url
        self._lock = lock
        self.lease_s = lease_s
        self._timeout_s = timeout_s
        # Twice more at once, which mends a connection that was lost. Who can wait longer for a server asks again.
        retry = Retry(ExponentialBackoff(cap=0.3, base=0.05), 2, (LostError, LateError, BusyLoadingError))
        try:
            self._redis = redis.Redis.from_url(
                url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry
            )
        except ValueError as error:
            raise UserError(f"{redacted(url)}: no queue server's URL ({error}); write redis://HOST:PORT/0") from None
        self._unanswered: dict[tuple[str, str], str] = {}
        folder = Path(__file__).parent / "lua"
        self._scripts: dict[str, Any] = {
            path.stem: self._redis.register_script(path.read_text()) for path in folder.glob("*.lua")
        }

    def close(self) -> None:
        self._redis.close()

    # ---- workers ----

    def claim(self, branch: str, worker: str, nonce: str | None = None) -> Lease | Refusal:
        """The current job of a branch. A worker's own lease is given to it again, under a new token."""
        # A server that hangs does all that reached it when it wakes. So a claim without an answer is repeated with its
        # nonce, which makes it the same claim: else each would count as an attempt.
        claim = branch, worker
        nonce = nonce or self._unanswered.setdefault(claim, uuid.uuid4().hex)
        answer = self._run(
            "claim",
            [jobs_key(branch), lease_key(branch), attempts_key(branch), HEADS, TOKENS, DEAD, NEWS, STORE],
            [branch, self._holder(worker), nonce, int(self.lease_s * 1000), ATTEMPTS, MOST_AHEAD_US, KEPT_S],
        )
        self._unanswered.pop(claim, None)
        match answer:
            case ["claimed", job, token, _]:
                return Lease(branch, int(token), nonce, Job(**json.loads(job)))
            case ["held", holder, left_ms]:
                return Refusal("held", _worker_of(holder), int(left_ms) / 1000)
            case ["unreconciled"]:
                raise NotReconciledError(f"{redacted(self.url)}: waits for the service, which tells it what is stored")
            case [why]:
                return Refusal(why)
            case _:
                raise AssertionError(answer)

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """The leases that are still the worker's, which now last as long as new ones."""
        words = [word for lease in leases for word in (lease.branch, lease.nonce, lease.token, lease.job.id)]
        branches = self._run(
            "renew",
            [TOKENS, STORE, *(lease_key(lease.branch) for lease in leases)],
            [self._holder(worker), int(self.lease_s * 1000), *words],
        )
        if branches == ["unreconciled"]:
            return list(leases)  # the server knows no tokens yet: nothing says that a lease is lost
        return [lease for lease in leases if lease.branch in branches]

    def release(self, lease: Lease, error: str = "", *, fatal: bool = False) -> Literal["released", "dead", "lost"]:
        """Gives the branch back. With an error the attempt counts; the last one, or a fatal one, ends the job."""
        branch = lease.branch
        return self._run(
            "release",
            [lease_key(branch), attempts_key(branch), TOKENS, DEAD, NEWS],
            # Fatal: the most attempts are 0, so this was the last. A long traceback is cut: people read it in a line.
            [branch, lease.token, lease.job.id, error[:2000], 0 if fatal else ATTEMPTS, KEPT_S],
        )

    # ---- the coordinator ----

    def enqueue(self, job: Job) -> Literal["enqueued", "there", "done", "ahead"]:
        """`ahead`: there are steps between it and the branch's other jobs or its head; those come first."""
        answer = self._run(
            "enqueue",
            [jobs_key(job.branch), HEADS, NEWS],
            [job.branch, job.id, json.dumps(asdict(job)), job.first, job.last, KEPT_S],
        )
        if answer == "conflict":
            raise JobConflictError(f"{job.id}: there is another job of that name; end its run, or take another queue")
        if answer.startswith("run "):
            raise JobConflictError(
                f"{job.branch}: the queue has jobs of {answer.removeprefix('run ')} for it, and this is {job.run}; "
                "give this recipe's branches other names, take another store and queue, or end that run and empty the "
                "queue (redis-cli flushdb)"
            )
        return answer

    def put_run(self, run: str, record: Mapping[str, Any]) -> None:
        """What a run is: its recipe, its state. Kept as long as somebody writes it."""
        self._do(("HSET", RUNS, run, json.dumps(record)), ("EXPIRE", RUNS, KEPT_S))

    def has_run(self, run: str) -> bool:
        (is_there,) = self._do(("HEXISTS", RUNS, run))
        return bool(is_there)

    def runs(self) -> dict[str, dict[str, Any]]:
        (records,) = self._do(("HGETALL", RUNS))
        return {run: json.loads(record) for run, record in records.items()}

    def agree(self, run: str, name: str, value: str) -> str:
        """The value that the first caller gave to `name`, for all workers of a run."""
        key = f"coevo:agreed:{run}"
        # One transaction: who comes second reads what the first has written.
        return self._do(("HSETNX", key, name, value), ("EXPIRE", key, KEPT_S), ("HGET", key, name))[-1]

    def agreed(self, run: str) -> dict[str, str]:
        """Every name of a run and its value."""
        return self._do(("HGETALL", f"coevo:agreed:{run}"))[0]

    # ---- the service ----

    def reconcile(self, store: str, branches: Mapping[str, tuple[int, int]]) -> bool:
        """Heads and newest tokens as they are on disk. Whether the server knew nothing."""
        keys = [key(name) for name in branches for key in (jobs_key, lease_key, attempts_key)]
        words = [word for name, (head, token) in branches.items() for word in (name, head, token)]
        answer = self._run("reconcile", [HEADS, TOKENS, STORE, NEWS, *keys], [store, KEPT_S, *words])
        if answer[0] == "other":
            raise OtherStoreError(
                f"{redacted(self.url)}: serves another store ({answer[1]}); take another database of that server "
                "(redis://HOST:PORT/1), or empty this one (redis-cli flushdb)"
            )
        for name in answer[1]:
            log.warning(
                "%s: a revision was published under the token %d, which is ahead of the clock of %s; its fence leaves "
                "it out. If that clock was set back, set it right; else no lease had this token: look who published it",
                name,
                branches[name][1],
                redacted(self.url),
            )
        return answer[0] == "anew"

    def identity(self) -> tuple[str | None, str]:
        """The store that the server was reconciled with, and the server's run id: another after each restart, in which
        a second may be lost."""
        store, server = self._do(("GET", STORE), ("INFO", "server"))
        return store, str(server["run_id"])

    def is_current(self, branch: str, token: int | None) -> bool:
        """Whether no newer token is known; without a token, whether nobody works on the branch."""
        newest, is_held, (s, us) = self._do(("HGET", TOKENS, branch), ("EXISTS", lease_key(branch)), ("TIME",))
        if token is None:
            return not is_held
        # Not by the lease: one that ran out unnoticed is still the newest.
        return may_publish(token, newest=int(newest or 0), now=int(s) * 1_000_000 + int(us))

    def advance(self, branch: str, revision: int, token: int | None) -> None:
        """Says that the revision is in the store."""
        self._run(
            "advance",
            [jobs_key(branch), lease_key(branch), attempts_key(branch), HEADS, TOKENS, DEAD, NEWS],
            [branch, revision, token or 0, KEPT_S],
        )

    # ---- what is, and what happens ----

    def heads(self) -> dict[str, int]:
        (heads,) = self._do(("HGETALL", HEADS))
        return {branch: int(head) for branch, head in heads.items()}

    def waiting(self, branches: Iterable[str]) -> dict[str, Waiting]:
        names = list(branches)
        commands: list[tuple[Any, ...]] = []
        for name in names:
            commands += [
                ("XRANGE", jobs_key(name), "-", "+"),
                ("HGET", lease_key(name), "worker"),
                ("HGET", attempts_key(name), "count"),
            ]
        replies = iter(self._do(*commands))
        waiting: dict[str, Waiting] = {}
        for name, entries, worker, attempts in zip(names, replies, replies, replies, strict=True):
            jobs = (Job(**json.loads(fields["job"])) for _, fields in cast(list[Entry], entries))
            waiting[name] = Waiting(tuple(jobs), _worker_of(worker) if worker else None, int(attempts or 0))
        return waiting

    def dead(self) -> list[DeadJob]:
        (records,) = self._do(("HGETALL", DEAD))
        return [DeadJob(branch, **json.loads(record)) for branch, record in records.items()]

    def retry(self, branch: str) -> bool:
        """Whether there was a dead job, which lives again."""
        return self._run("retry", [attempts_key(branch), DEAD, NEWS], [branch, KEPT_S]) == "retried"

    def news(self, after: str, timeout_s: float) -> str:
        """Waits until something changed after the entry `after` ("$": from now on); the newest entry's name."""
        assert timeout_s < self._timeout_s  # else the socket's timeout comes first and looks like a server that is away
        with self._away_as_error():
            # At least 1 ms: a block of 0 waits for ever.
            streams = cast(Any, self._redis.xread({NEWS: after}, block=max(1, int(timeout_s * 1000))))
        return streams[0][1][-1][0] if streams else after

    def last_news(self) -> str:
        (entries,) = self._do(("XREVRANGE", NEWS, "+", "-", "COUNT", 1))
        return entries[0][0] if entries else "0"

    def tell(self, run: str, kind: str, **fields: Any) -> None:
        """An event, for people and for the run's files; the service takes it from here."""
        event = json.dumps({"run": run, "kind": kind, **fields})
        # "~": the server may keep a few more, which saves it the exact count.
        self._do(("XADD", EVENTS, "MAXLEN", "~", MOST_EVENTS, "*", "event", event), ("EXPIRE", EVENTS, KEPT_S))

    def events(self, most: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """The oldest, by their names; they stay until `forget`."""
        (entries,) = self._do(("XRANGE", EVENTS, "-", "+", "COUNT", most))
        return [(name, json.loads(fields["event"])) for name, fields in cast(list[Entry], entries)]

    def forget(self, names: Sequence[str]) -> None:
        self._do(("XDEL", EVENTS, *names))

    def _holder(self, worker: str) -> str:
        return f"{worker}{_UNDER}{self._lock}" if self._lock else worker

    def _run(self, script: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        with self._away_as_error():
            return self._scripts[script](keys=keys, args=words)

    def _do(self, *commands: tuple[Any, ...]) -> list[Any]:
        """The reply to each command; all in one transaction."""
        with self._away_as_error(), self._redis.pipeline() as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute()

    @contextmanager
    def _away_as_error(self) -> Generator[None]:
        try:
            yield
        except (AuthenticationError, AuthorizationError) as error:  # to redis-py it is a lost connection
            raise UserError(
                f"{redacted(self.url)}: the queue server refuses its user or password ({error}); mend COEVO_REDIS_URL"
            ) from None
        except (LostError, LateError) as error:
            raise QueueAwayError(f"{redacted(self.url)}: the queue server does not answer ({error})") from None
        except redis.ResponseError as error:
            # What a server says while its memory or disk is full, or while it is a replica. All else is a bug of ours.
            if not isinstance(error, OutOfMemoryError | ReadOnlyError) and not _CANNOT_NOW.search(str(error)):
                raise
            raise QueueAwayError(f"{redacted(self.url)}: the queue server can take nothing now ({error})") from None


def jobs_key(branch: str) -> str:
    return f"coevo:jobs:{branch}"


def lease_key(branch: str) -> str:
    return f"coevo:lease:{branch}"


def attempts_key(branch: str) -> str:
    return f"coevo:attempts:{branch}"


def _worker_of(holder: str) -> str:
    return holder.partition(_UNDER)[0]


def redacted(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
