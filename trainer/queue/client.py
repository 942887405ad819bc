"""The queue: who works on which branch, up to where it has come, and what happened.

A job is a segment of a plan. A branch's jobs are one stream, and the current job is its first entry; the lease says who
works on it, the token says since when. A token is current while no newer one is known, so a worker whose lease ran out
unnoticed (the server was away) may still publish, and one whose branch went to another may not. A job is done when its
branch's head has reached its end: nothing else says so, and nothing has to be acknowledged.

The store is the truth and all this an index of it, which `reconcile` rebuilds. Every change is one script in `lua/`,
all time is the server's. A key goes after 30 days without a write, but for those in `PERMANENT`.

Left out: what is in a job (`plan`), and finding or starting a server (`queue_server`). Imports nothing of this package,
because the service uses it too.
"""

import json
import re
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import TimeoutError as LateError
from redis.retry import Retry

from adapters.errors import UserError

LEASE_S = 30.0
ATTEMPTS = 3
KEPT_S = 30 * 24 * 3600
MOST_EVENTS = 100_000

HEADS, TOKENS, STORE = "coevo:heads", "coevo:tokens", "coevo:store"
DEAD, NEWS, EVENTS, RUNS = "coevo:dead", "coevo:news", "coevo:events", "coevo:runs"
PERMANENT = frozenset({HEADS, TOKENS, STORE})

Entry = tuple[str, dict[str, str]]


class QueueAwayError(UserError):
    """The server does not answer, or can take nothing. It may again."""


class NotReconciledError(UserError):
    """The server knows nothing of the store yet: the service tells it."""


class JobConflictError(UserError):
    """Another job has the same id."""


class OtherStoreError(UserError):
    """The server serves another store."""


@dataclass(frozen=True, slots=True)
class Job:
    """Steps `first` + 1 to `first` + `steps` of a branch."""

    id: str
    run: str
    branch: str
    kind: str
    first: int
    steps: int

    @property
    def last(self) -> int:
        return self.first + self.steps


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish the next revisions of a branch."""

    branch: str
    token: int
    nonce: str
    job: Job


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a branch cannot be worked on now."""

    why: Literal["empty", "held", "dead"]
    holder: str = ""
    left_s: float = 0.0
    """Until its lease runs out, if it is not renewed."""


@dataclass(frozen=True, slots=True)
class DeadJob:
    """One that failed `ATTEMPTS` times without a step. Its branch stands still until it is retried."""

    branch: str
    job: str
    error: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A branch's jobs, and who works on the first."""

    jobs: tuple[Job, ...]
    worker: str | None
    attempts: int


class Queue:
    """One connection; give each thread its own. A call ends within seconds, whatever the server does."""

    def __init__(self, url: str, *, lease_s: float = LEASE_S, timeout_s: float = 1.0) -> None:
        self.url = url
        self.lease_s = lease_s
        self._timeout_s = timeout_s
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
        """The current job of a branch. A worker's own lease is given to it again, under a new token.

        A server that hangs does what it was asked when it wakes, so a claim without an answer is asked again as the
        same one: else each would count as an attempt.
        """
        asked = branch, worker
        nonce = nonce or self._unanswered.setdefault(asked, uuid.uuid4().hex)
        answer = self._run(
            "claim",
            [jobs_key(branch), lease_key(branch), attempts_key(branch), HEADS, TOKENS, DEAD, NEWS, STORE],
            [branch, worker, nonce, int(self.lease_s * 1000), ATTEMPTS, KEPT_S],
        )
        self._unanswered.pop(asked, None)
        match answer:
            case ["claimed", job, token, _]:
                return Lease(branch, int(token), nonce, Job(**json.loads(job)))
            case ["held", holder, left_ms]:
                return Refusal("held", holder, int(left_ms) / 1000)
            case ["unreconciled"]:
                raise NotReconciledError(f"{redacted(self.url)}: waits for the service, which tells it what is stored")
            case [why]:
                return Refusal(why)
            case _:
                raise AssertionError(answer)

    def renew(self, worker: str, leases: Sequence[Lease]) -> list[Lease]:
        """Those that are still the worker's, which now last as long as new ones."""
        words = [word for one in leases for word in (one.branch, one.nonce, one.token, one.job.id)]
        kept = self._run(
            "renew",
            [TOKENS, STORE, *(lease_key(one.branch) for one in leases)],
            [worker, int(self.lease_s * 1000), *words],
        )
        return list(leases) if kept == ["unreconciled"] else [one for one in leases if one.branch in kept]

    def release(self, lease: Lease, error: str = "", *, fatal: bool = False) -> Literal["released", "dead", "lost"]:
        """Gives the branch back. With an error the attempt counts; the last one, or a fatal one, ends the job."""
        branch = lease.branch
        return self._run(
            "release",
            [lease_key(branch), attempts_key(branch), TOKENS, DEAD, NEWS],
            [branch, lease.token, lease.job.id, error[:2000], 0 if fatal else ATTEMPTS, KEPT_S],
        )

    # ---- the coordinator ----

    def enqueue(self, job: Job) -> Literal["enqueued", "there", "done"]:
        answer = self._run(
            "enqueue",
            [jobs_key(job.branch), HEADS, NEWS],
            [job.branch, job.id, json.dumps(asdict(job)), job.last, KEPT_S],
        )
        if answer == "conflict":
            raise JobConflictError(f"{job.id}: there is another job of that name; end its run, or take another queue")
        return answer

    def put_run(self, run: str, record: Mapping[str, Any]) -> None:
        """What a run is: its recipe, its state. Kept as long as somebody writes it."""
        self._do(("HSET", RUNS, run, json.dumps(record)), ("EXPIRE", RUNS, KEPT_S))

    def has_run(self, run: str) -> bool:
        (found,) = self._do(("HEXISTS", RUNS, run))
        return bool(found)

    def runs(self) -> dict[str, dict[str, Any]]:
        (found,) = self._do(("HGETALL", RUNS))
        return {run: json.loads(record) for run, record in found.items()}

    def agree(self, run: str, name: str, value: str) -> str:
        """What the first to ask said of `name`, for all workers of a run."""
        key = f"coevo:agreed:{run}"
        return self._do(("HSETNX", key, name, value), ("EXPIRE", key, KEPT_S), ("HGET", key, name))[-1]

    def agreed(self, run: str) -> dict[str, str]:
        """All that was."""
        (found,) = self._do(("HGETALL", f"coevo:agreed:{run}"))
        return found

    # ---- the service ----

    def reconcile(self, store: str, branches: Mapping[str, tuple[int, int]]) -> bool:
        """Heads and newest tokens as they are on disk. Whether the server knew nothing."""
        words = [word for name, (head, token) in branches.items() for word in (name, head, token)]
        answer = self._run("reconcile", [HEADS, TOKENS, STORE, *map(jobs_key, branches)], [store, *words])
        if answer[0] == "other":
            raise OtherStoreError(
                f"{redacted(self.url)}: serves another store ({answer[1]}); take another database of that server "
                "(redis://HOST:PORT/1), or empty this one (redis-cli flushdb)"
            )
        return answer == ["anew"]

    def told(self) -> tuple[str | None, str]:
        """Which store the server was told of, and the name of its life: another one may have lost a second."""
        store, server = self._do(("GET", STORE), ("INFO", "server"))
        return store, str(server["run_id"])

    def is_current(self, branch: str, token: int | None) -> bool:
        """Without a token: whether nobody works on the branch."""
        newest, held = self._do(("HGET", TOKENS, branch), ("EXISTS", lease_key(branch)))
        return not held if token is None else token >= int(newest or 0)

    def advance(self, branch: str, revision: int, token: int | None) -> None:
        """The revision is in the store."""
        self._run(
            "advance",
            [jobs_key(branch), lease_key(branch), attempts_key(branch), HEADS, TOKENS, DEAD, NEWS],
            [branch, revision, token or 0, KEPT_S],
        )

    # ---- what is, and what happens ----

    def heads(self) -> dict[str, int]:
        (found,) = self._do(("HGETALL", HEADS))
        return {branch: int(head) for branch, head in found.items()}

    def waiting(self, branches: Iterable[str]) -> dict[str, Waiting]:
        names = list(branches)
        found = iter(
            self._do(
                *(
                    command
                    for name in names
                    for command in (
                        ("XRANGE", jobs_key(name), "-", "+"),
                        ("HGET", lease_key(name), "worker"),
                        ("HGET", attempts_key(name), "count"),
                    )
                )
            )
        )
        return {name: _waiting(next(found), next(found), next(found)) for name in names}

    def dead(self) -> list[DeadJob]:
        (found,) = self._do(("HGETALL", DEAD))
        return [DeadJob(branch, **json.loads(record)) for branch, record in found.items()]

    def retry(self, branch: str) -> bool:
        """Whether there was a dead job, which lives again."""
        return self._run("retry", [attempts_key(branch), DEAD, NEWS], [branch, KEPT_S]) == "retried"

    def news(self, after: str, timeout_s: float) -> str:
        """Waits until something changed after the entry `after` ("$": from now on); the newest entry's name."""
        assert timeout_s < self._timeout_s
        with self._patience():
            found = cast(Any, self._redis.xread({NEWS: after}, block=max(1, int(timeout_s * 1000))))
        return found[0][1][-1][0] if found else after

    def last_news(self) -> str:
        (found,) = self._do(("XREVRANGE", NEWS, "+", "-", "COUNT", 1))
        return found[0][0] if found else "0"

    def tell(self, run: str, kind: str, **what: Any) -> None:
        """An event, for people and for the run's files; the service takes it from here."""
        event = json.dumps({"run": run, "kind": kind, **what})
        self._do(("XADD", EVENTS, "MAXLEN", "~", MOST_EVENTS, "*", "event", event), ("EXPIRE", EVENTS, KEPT_S))

    def events(self, most: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """The oldest, by their names; they stay until `forget`."""
        (found,) = self._do(("XRANGE", EVENTS, "-", "+", "COUNT", most))
        return [(name, json.loads(fields["event"])) for name, fields in cast(list[Entry], found)]

    def forget(self, names: Sequence[str]) -> None:
        self._do(("XDEL", EVENTS, *names))

    def _run(self, script: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        with self._patience():
            return self._scripts[script](keys=keys, args=words)

    def _do(self, *commands: tuple[Any, ...]) -> list[Any]:
        """In one transaction; the answer of each."""
        with self._patience(), self._redis.pipeline() as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return pipe.execute()

    @contextmanager
    def _patience(self) -> Generator[None]:
        try:
            yield
        except (LostError, LateError) as error:
            raise QueueAwayError(f"{redacted(self.url)}: the queue server does not answer ({error})") from None
        except redis.ResponseError as error:
            if not isinstance(error, OutOfMemoryError | ReadOnlyError) and not _CANNOT_NOW.search(str(error)):
                raise
            raise QueueAwayError(f"{redacted(self.url)}: the queue server can take nothing now ({error})") from None


_CANNOT_NOW = re.compile("(^|caused error: )(MISCONF|BUSY|NOREPLICAS) ")  # the client says which command of several


def jobs_key(branch: str) -> str:
    return f"coevo:jobs:{branch}"


def lease_key(branch: str) -> str:
    return f"coevo:lease:{branch}"


def attempts_key(branch: str) -> str:
    return f"coevo:attempts:{branch}"


def _waiting(entries: Sequence[Entry], worker: str | None, attempts: str | None) -> Waiting:
    return Waiting(tuple(Job(**json.loads(fields["job"])) for _, fields in entries), worker, int(attempts or 0))


def redacted(url: str) -> str:
    """The URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
