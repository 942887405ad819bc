import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from service.supervisor import ENGINE_DIED, _Budget

PATIENCE_S = 60.0

SUPERVISE = """
import sys
from service.supervisor import supervise
backoff_s, stop_within_s, window_s, *words = sys.argv[1:]
command = [sys.executable, "-S", "-c", *words]
numbers = {"backoff_s": float(backoff_s), "stop_within_s": float(stop_within_s), "window_s": float(window_s)}
sys.exit(supervise(command, **numbers))
"""

# The first lines of every child: it tells how it was started and where it lives.
TELL = """
import os, signal, sys, time
print("start", os.environ["COEVO_RESTARTS"], os.getpid(), flush=True)
"""


@pytest.fixture
def supervised():
    """Starts a supervisor of a child with the given code. None of them outlives the test."""
    running = []

    def start(code, *arguments, backoff_s=0.01, stop_within_s=PATIENCE_S, window_s=600.0):
        numbers = map(str, (backoff_s, stop_within_s, window_s))
        words = ["-c", SUPERVISE, *numbers, TELL + code, *map(str, arguments)]
        running.append(
            subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.communicate()


def end_of(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out.splitlines(), err


def started(process):
    """The pid of the child that starts next, and how often it was restarted."""
    word, restarts, pid = process.stdout.readline().split()
    assert word == "start"
    return int(pid), int(restarts)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_the_childs_last_word_is_the_parents(supervised, status):
    code, out, _ = end_of(supervised(f"sys.exit({status})"))
    assert code == status
    assert len(out) == 1


def test_a_dead_engine_is_started_again_until_it_is_too_often(supervised):
    code, out, err = end_of(supervised(f"os._exit({ENGINE_DIED})"))
    assert code == ENGINE_DIED
    assert [line.split()[1] for line in out] == ["0", "1", "2", "3"]
    assert err.count("starting it again") == 3
    assert "ended 4 times" in err
    assert "giving up" in err


def test_an_engine_that_loads_long_and_dies_uses_up_its_restarts(supervised):
    """However long it loads, nothing of it is time served: not even a window of 0 s passes."""
    code, out, err = end_of(supervised(f"time.sleep(0.1); os._exit({ENGINE_DIED})", window_s=0))
    assert code == ENGINE_DIED
    assert [line.split()[1] for line in out] == ["0", "1", "2", "3"]
    assert "giving up" in err


def test_an_engine_that_served_for_a_window_has_its_restarts_again(supervised):
    ready = "os.write(int(os.environ['COEVO_READY_FD']), b'.')"
    process = supervised(f"{ready}; time.sleep(0.3); os._exit({ENGINE_DIED})", window_s=0)
    assert [started(process)[1] for _ in range(6)] == [0, 1, 1, 1, 1, 1]
    process.terminate()
    end_of(process)


def test_a_killed_child_is_started_again(supervised):
    process = supervised("time.sleep(600)")
    pid, restarts = started(process)
    assert restarts == 0
    os.kill(pid, signal.SIGKILL)
    again, restarts = started(process)
    assert again != pid
    assert restarts == 1
    process.terminate()
    assert end_of(process)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_child_decides_its_end(supervised, number):
    process = supervised("""
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
print("ready", flush=True)
time.sleep(600)
""")
    started(process)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    code, out, err = end_of(process)
    assert (code, out, err) == (0, [], "")


def test_an_engine_that_dies_while_stopping_is_not_started_again(supervised):
    process = supervised(f"""
signal.signal(signal.SIGTERM, lambda number, frame: os._exit({ENGINE_DIED}))
print("ready", flush=True)
time.sleep(600)
""")
    started(process)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    code, out, _ = end_of(process)
    assert (code, out) == (ENGINE_DIED, [])


def test_a_child_that_does_not_stop_is_killed(supervised):
    process = supervised(
        """
signal.signal(signal.SIGTERM, lambda number, frame: None)
print("ready", flush=True)
while True: time.sleep(600)
""",
        stop_within_s=0.05,
    )
    pid, _ = started(process)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    code, _, err = end_of(process)
    assert code == 128 + signal.SIGKILL
    assert "killing it" in err
    assert is_gone(pid)


def test_a_signal_during_the_pause_ends_it(supervised):
    process = supervised(f"os._exit({ENGINE_DIED})", backoff_s=600)
    started(process)
    assert "starting it again" in process.stderr.readline()
    process.terminate()
    assert end_of(process)[0] == 128 + signal.SIGTERM


def test_the_child_dies_with_its_parent(supervised):
    process = supervised("time.sleep(600)")
    pid, _ = started(process)
    process.kill()
    process.wait()
    wait_until(lambda: is_gone(pid))


def test_what_a_dead_child_left_behind_is_killed(supervised, tmp_path):
    process = supervised(
        f"""
if os.path.exists(sys.argv[1]):
    time.sleep(600)
if (engine := os.fork()) == 0:
    time.sleep(600)
open(sys.argv[1], "w").write(str(engine))
os._exit({ENGINE_DIED})
""",
        tmp_path / "engine",
    )
    started(process)
    assert started(process)[1] == 1
    wait_until(lambda: is_gone(int((tmp_path / "engine").read_text())))


def test_restarts_are_forgotten_after_the_window():
    now = [0.0]
    budget = _Budget(2, 600.0, lambda: now[0])
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    now[0] = 601.0
    assert budget.spent() == 0
    assert budget.take()
