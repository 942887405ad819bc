"""Groups of real little processes: what is restarted, what ends a run, and in which order they stop."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.errors import UserError
from service.concurrency import Stopped
from trainer.local import processes
from trainer.local.processes import COORDINATOR, SERVICE, ProcessGroup

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


@pytest.mark.parametrize("code", ["raise SystemExit(69)", "raise SystemExit(70)", "import os; os.kill(os.getpid(), 9)"])
def test_a_worker_that_died_is_started_again(group: ProcessGroup, code: str) -> None:
    group.start("worker-all", "-c", f"print('a life', flush=True); {code}")
    for _ in range(processes._RESTARTS):
        end(group, "worker-all")
        group.restart_dead()
    end(group, "worker-all")
    with pytest.raises(UserError, match="the worker-all did not go on: a life"):
        group.restart_dead()
    assert (group.folder / "worker-all.log").read_text().splitlines() == ["a life"] * (1 + processes._RESTARTS)


def test_a_worker_that_lived_long_has_all_its_restarts_again(
    group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LIVED_S", 0.0)
    group.start("worker-all", "-c", "raise SystemExit(70)")
    for _ in range(processes._RESTARTS + 1):
        end(group, "worker-all")
        group.restart_dead()


@pytest.mark.parametrize(
    ("name", "code"),
    [("worker-all", "raise SystemExit(2)"), (COORDINATOR, "raise SystemExit(70)"), (SERVICE, "raise SystemExit(70)")],
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
