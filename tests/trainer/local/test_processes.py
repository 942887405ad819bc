"""Groups of real little processes: what is restarted, what ends a run, and in which order they stop."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from adapters.errors import UserError
from service.concurrency import Stopped
from trainer.local import processes
from trainer.local.processes import COORDINATOR, SERVICE, ProcessGroup, QueueServer, error_line
from trainer.queue import server as queue_server
from trainer.queue.client import Queue

FOR_EVER = "import time; time.sleep(600)"
AT_ITS_END = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(0.2)
    with pathlib.Path(sys.argv[1]).open("a") as file:
        file.write(sys.argv[2] + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""
"""Writes its name into a file when it is asked to end, after a moment."""


@pytest.fixture
def group(tmp_path: Path):
    with ProcessGroup(tmp_path / "logs", {}) as group:
        yield group


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(group: ProcessGroup, name: str) -> None:
    wait_until(lambda: not group.is_running(name))


@pytest.mark.parametrize("name", ["worker-all", COORDINATOR])
@pytest.mark.parametrize("code", ["raise SystemExit(69)", "raise SystemExit(70)", "os.kill(os.getpid(), 9)"])
def test_what_died_is_started_again_and_counted(group: ProcessGroup, name: str, code: str) -> None:
    group.start(name, "-c", f"import os; print('life', os.environ['COEVO_RESTARTS'], flush=True); {code}")
    for _ in range(processes.RESTARTS):
        end(group, name)
        group.restart_dead()
    end(group, name)
    with pytest.raises(UserError, match=rf"the {name} did not go on: .*life 5.*; 5 restarts brought no step"):
        group.restart_dead()
    assert group.last_log_line(name).endswith(f"({group.folder}/{name}.log)")
    assert (group.folder / f"{name}.log").read_text() == "".join(f"life {number}\n" for number in range(6))


ENGINE = """coevo serve: loading miniature ...
(EngineCore pid=7) ERROR 11-29 15:47:39 [core.py:1510] ValueError: too little memory for the cache
Traceback (most recent call last):
  File "core_client.py", line 1, in launch
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("reading\ngone\n", "gone"),
        ("KeyError: 'logged, and gone on with'\nworker: no such branch\n", "worker: no such branch"),
        ("Traceback (most recent call last):\nKeyError: 'a'\nleaked semaphores\n", "KeyError: 'a'"),
        (ENGINE, "ValueError: too little memory for the cache"),
        (ENGINE + "coevo serve: the service ended 4 times; giving up", "ValueError: too little memory for the cache"),
        ("coevo serve: the service ended 4 times; giving up", "coevo serve: the service ended 4 times; giving up"),
        ('{"level": "info", "event": "w works for r"}\n', "w works for r"),
        (
            '{"event": "worker ended", "exception": "Traceback ...\\nValueError: no room"}\nleaked semaphores\n',
            "ValueError: no room",
        ),
        (ENGINE + '{"event": "the service ended 4 times; giving up"}', "ValueError: too little memory for the cache"),
        ('{"event": "cut o', '{"event": "cut o'),
    ],
)
def test_the_reason_in_a_log_is_its_last_word_or_the_error_behind_it(log: str, said: str) -> None:
    assert error_line(log) == said


@pytest.mark.reference
def test_a_worker_that_cannot_start_says_why(group: ProcessGroup, tmp_path: Path) -> None:
    """A real one, with the wrong password of a real queue server."""
    with queue_server.start(tmp_path / "queue") as server:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.config_set("requirepass", "right")
        url = server.url.replace("redis://", "redis://:wrong@")
        group.start("worker-all", "-m", "trainer.worker", "--branch", "all", COEVO_REDIS_URL=url)
        end(group, "worker-all")
    with pytest.raises(UserError, match=r"refuses its user or password .*; mend COEVO_REDIS_URL") as error:
        group.restart_dead()
    assert "wrong@" not in str(error.value)


def test_a_restart_is_told_with_its_reason(group: ProcessGroup, capsys: pytest.CaptureFixture[str]) -> None:
    group.start("worker-all", "-c", FOR_EVER)
    group._processes["worker-all"].popen.kill()
    end(group, "worker-all")
    group.restart_dead()
    hint = "as the kernel does when memory is full"
    assert capsys.readouterr().out == f"worker-all: killed by SIGKILL, {hint}; starting it again\n"


def test_a_step_of_the_run_gives_all_restarts_again(group: ProcessGroup) -> None:
    group.start("worker-all", "-c", "raise SystemExit(70)")
    for _ in range(processes.RESTARTS + 1):
        end(group, "worker-all")
        group.restart_dead()
        group.progressed()


def test_the_queue_server_comes_back_with_what_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with QueueServer(tmp_path / "queue") as server, ProcessGroup(tmp_path / "logs", {}, queue=server) as group:
        queue, address = Queue(server.url), server.url
        queue.put_run("run", {"state": "running"})
        for _ in range(processes.RESTARTS):
            kill_server(server)
            group.restart_dead()
            assert "queue server: killed by SIGKILL" in capsys.readouterr().out
        assert server.url == address
        assert queue.runs() == {"run": {"state": "running"}}
        kill_server(server)
        with pytest.raises(UserError, match=r"the queue server did not go on: killed by SIGKILL.*server\.log"):
            group.restart_dead()
        queue.close()


def kill_server(server: QueueServer) -> None:
    assert server._server is not None
    server._server.process.kill()
    server._server.process.wait()


@pytest.mark.parametrize(
    ("name", "code"),
    [("worker-all", "raise SystemExit(2)"), (COORDINATOR, "raise SystemExit(2)"), (SERVICE, "raise SystemExit(70)")],
)
def test_what_cannot_go_on_ends_the_run_with_its_last_line(group: ProcessGroup, name: str, code: str) -> None:
    group.start(name, "-c", f"print('first'); print('why it ended'); {code}")
    end(group, name)
    with pytest.raises(UserError) as error:
        group.restart_dead()
    assert str(error.value) == f"the {name} did not go on: why it ended ({group.folder}/{name}.log)"


def test_a_process_that_said_nothing_ends_with_its_status(group: ProcessGroup) -> None:
    group.start("worker-all", "-c", "raise SystemExit(3)")
    end(group, "worker-all")
    assert "it ended with status 3" in group.last_log_line("worker-all")


def test_a_process_that_is_done_or_runs_is_left_alone(group: ProcessGroup) -> None:
    group.start("worker-text", "-c", "")
    group.start("worker-image", "-c", FOR_EVER)
    end(group, "worker-text")
    group.restart_dead()
    assert group.status("worker-text") == 0
    assert group.is_running("worker-image")


def test_the_log_is_that_of_the_last_life(group: ProcessGroup) -> None:
    for word in ("before", "after"):
        group.start("worker-all", "-c", f"print('{word}')")
        end(group, "worker-all")
    assert group.log("worker-all") == "after\n"


def test_the_environment_is_the_groups_and_the_processs_own(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path, {"OF_GROUP": "1"}) as group:
        group.start("worker-all", "-c", "import os; print(os.environ['OF_GROUP'], os.environ['OWN'])", OWN="2")
        end(group, "worker-all")
        assert group.log("worker-all") == "1 2\n"


def test_workers_stop_first_and_the_service_last(group: ProcessGroup, tmp_path: Path) -> None:
    names = [SERVICE, "worker-b", COORDINATOR, "worker-a"]
    for name in names:
        group.start(name, "-c", AT_ITS_END, str(tmp_path / "ends"), name)
    for name in names:
        wait_until(lambda name=name: group.log(name) == "ready\n")
    group.stop()
    ends = (tmp_path / "ends").read_text().splitlines()
    assert set(ends[:2]) == {"worker-a", "worker-b"}
    assert ends[2:] == [COORDINATOR, SERVICE]


@pytest.mark.parametrize(("error", "is_waited_for"), [(Stopped, True), (UserError, False)])
def test_a_stop_gives_time_to_hand_over_and_a_failure_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], is_waited_for: bool
) -> None:
    monkeypatch.setattr(processes, "_FAILED_WITHIN_S", 0.0)
    group = ProcessGroup(tmp_path / "logs", {})
    with contextlib.suppress(error), group:
        group.start("worker-all", "-c", AT_ITS_END, str(tmp_path / "ends"), "worker-all")
        wait_until(lambda: group.log("worker-all") == "ready\n")
        raise error
    assert (tmp_path / "ends").exists() == is_waited_for


def test_a_service_that_does_not_start_is_told_by_its_last_line(group: ProcessGroup) -> None:
    with pytest.raises(UserError, match="the service did not go on: coevo serve: nowhere: neither a folder nor"):
        group.serve(SERVICE, "--base=nowhere")


def test_nobody_waits_for_a_service_once_the_run_is_to_stop(tmp_path: Path) -> None:
    with pytest.raises(Stopped), ProcessGroup(tmp_path, {}, is_stopped=lambda: True) as group:
        group.serve(SERVICE, "--base=miniature", "--port=0", f"--store={tmp_path / 'store'}")


ENDED_BY_FORCE = """
import os, signal, sys
from pathlib import Path
from trainer.local.processes import ProcessGroup

with ProcessGroup(Path(sys.argv[1]), {}) as group:
    group.start("worker-all", "-c", sys.argv[2])
    while "ready" not in group.log("worker-all"):
        pass
    print(group._processes["worker-all"].popen.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
BUSY = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def test_a_worker_of_a_killed_run_is_gone_whatever_it_is_at(tmp_path: Path) -> None:
    """It would publish to a service that is gone, and keep its name from the worker of the next start."""
    words = [sys.executable, "-c", ENDED_BY_FORCE, str(tmp_path), BUSY]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    worker = int(run.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert psutil.wait_procs([psutil.Process(worker)], timeout=30)[1] == []
