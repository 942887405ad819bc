"""`coevo run` keeps its own processes: what is killed comes back, and the run ends as planned."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SMALL = (
    "method.cycles=2",
    "method.rlvr_steps=2",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "rollout.group_size=4",
    "evaluation.questions=2",
    "evaluation.overlap_prompts=0",
    "evaluation.answers.samples=0",
    *(f"capabilities.{name}.data.size=64" for name in ("text", "image", "video")),
)


def test_queue_coordinator_and_worker_come_back_when_they_are_killed(tmp_path: Path) -> None:
    sets = [word for change in SMALL for word in ("--set", change)]
    command = [sys.executable, "-m", "clients.cli", "run", "recipes/miniature.toml", *sets, f"--out={tmp_path / 'out'}"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.stdout is not None
    said: list[str] = []

    def wait_for(is_it: Callable[[str], bool]) -> None:
        assert run.stdout is not None
        for line in run.stdout:
            said.append(line)
            if is_it(line):
                return
        raise AssertionError("".join(said))

    def kill(name: str, word: str) -> None:
        (process,) = [child for child in psutil.Process(run.pid).children() if word in " ".join(child.cmdline())]
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda line: line.startswith(f"{name}: killed by SIGKILL"))
        assert said[-1].endswith("; starting it again\n")

    wait_for(lambda line: line.startswith("text@1 of 6"))
    kill("queue server", "valkey-server")
    wait_for(lambda line: " of 6: reward" in line)
    kill("coordinator", "coordinate")
    wait_for(lambda line: " of 6: reward" in line)
    kill("worker-all", "trainer.worker")
    rest, _ = run.communicate(timeout=600)
    assert "next:\n  coevo look " in rest
    assert run.returncode == 0, "".join(said) + rest
    assert "is finished" in rest
