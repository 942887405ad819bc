"""`coevo run` as a person uses it: started, interrupted at every stage, resumed, started wrongly."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from tests import disks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

BRANCHES = ("text", "image", "video")
SMALL = (
    "method.cycles=1",
    "method.rlvr_steps=2",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "rollout.group_size=4",
    "evaluation.questions=4",
    "evaluation.overlap_prompts=2",
    "evaluation.answers.samples=0",
    *(f"capabilities.{name}.data.size=64" for name in BRANCHES),
)
PATIENCE_S = 240.0


def command(out: Path, *words: str) -> list[str]:
    sets = [word for change in SMALL for word in ("--set", change)]
    return [sys.executable, "-m", "clients.cli", "run", "recipes/miniature.toml", *sets, "--out", str(out), *words]


def run(words: Sequence[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=os.environ | environ
    )  # fmt: skip


class Started:
    """A run as a process, read line by line."""

    def __init__(self, *words: str, out: Path) -> None:
        self._out = out
        self._process = subprocess.Popen(
            command(out, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for_line(self, is_it: Callable[[str], bool]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if is_it(line):
                return
        raise AssertionError("it ended before")

    def wait_for_log(self, name: str, word: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        log = self._out / "logs" / f"{name}.log"
        while not (log.exists() and word in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def interrupt(self, times: int = 1) -> str:
        """What it said at last. Nothing of it is left."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        for _ in range(times):
            self._process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        said = self._process.communicate(timeout=PATIENCE_S)[0]
        assert self._process.returncode == 130
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        return said


def test_a_run_that_is_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    training = Started(out=out)
    for _ in BRANCHES:  # later than the first steps, the last could be made before the signal comes
        training.wait_for_line(lambda line: "@1 of 3: reward" in line)
    training.interrupt()
    assert 3 <= sum(heads(out).values()) < 9
    done = run(command(out, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    check_finished(out, done.stdout)


@pytest.mark.soak
def test_a_run_interrupted_at_any_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    loading = Started(out=out)
    loading.wait_for_log("service", "loading")
    assert f"--out {out} --resume" in loading.interrupt()

    assert "holds a run; add --resume" in run(command(out)).stderr
    refused = run(command(out, "--resume", "--set", "seed=7"))
    assert (refused.returncode, "a run of another recipe" in refused.stderr) == (2, True)

    rollouts = Started("--resume", out=out)
    rollouts.wait_for_log("worker-all", "works for")
    rollouts.interrupt(times=2)  # the second time at once

    rlvr = Started("--resume", out=out)
    rlvr.wait_for_line(lambda line: line.startswith("text@1 of 3: reward"))
    rlvr.interrupt()
    assert 1 <= sum(heads(out).values()) < 9

    opd = Started("--resume", out=out)
    opd.wait_for_line(lambda line: "taught by" in line)
    opd.interrupt()

    trained = Started("--resume", out=out)
    trained.wait_for_line(lambda line: line.startswith("merging "))
    trained.interrupt()
    assert not (out / "results.json").exists()

    exam = Started("--resume", out=out)
    exam.wait_for_line(lambda line: line.startswith("examining base, text@3"))
    assert not (out / "results.json").exists()
    exam.interrupt()

    done = run(command(out, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    check_finished(out, done.stdout)
    again = run(command(out, "--resume"))
    assert again.returncode == 0
    assert again.stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]


def check_finished(out: Path, said: str) -> None:
    assert "is finished" in said
    assert "looks at nothing" in said
    assert heads(out) == dict.fromkeys(BRANCHES, 3)
    (path,) = out.glob("runs/*/events.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [(event["branch"], event["step"]) for event in events if event["kind"] == "step"]
    assert sorted(set(steps)) == sorted((name, number) for name in BRANCHES for number in (1, 2, 3))
    assert {event["step"] for event in events if event["kind"] == "overlap"} == {2, 3}
    results = json.loads((out / "results.json").read_text())
    models = ["base", "text@3", "image@3", "video@3", "merged"]
    assert list(dict.fromkeys(result["model"] for result in results["results"])) == models
    assert len((out / "items.jsonl").read_text().splitlines()) == len(models) * len(BRANCHES) * 4
    card = (out / "merged/README.md").read_text()
    assert all(f"| {model} |" in card for model in models)
    assert (out / "curves.png").stat().st_size > 10_000
    with safe_open(out / "merged-adapter/adapter_model.safetensors", "np") as file:
        assert file.get_slice(next(iter(file.keys()))).get_shape()[0] == 3 * 16


def test_what_it_cannot_start_it_says_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = {
            "/no/such/base: no such folder": run(command(tmp_path / "a", "--set", "base.name=/no/such/base")),
            f"--port {port}: cannot listen on 127.0.0.1": run(command(tmp_path / "b", f"--port={port}")),
            "redis://127.0.0.1:1/0: cannot be used": run(command(tmp_path / "c"), COEVO_REDIS_URL="redis://127.0.0.1:1/0"),
            "tracking.to: trackio is not installed": run(command(tmp_path / "d", "--set", 'tracking.to=["trackio"]')),
        }  # fmt: skip
    for said, done in wrong.items():
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "small", "64m") as folder:
        yield folder


@pytest.mark.soak
def test_a_full_disk_ends_it_in_a_line_then_it_goes_on(small_disk: Path) -> None:
    """Room for the queue and the first revisions, and no more."""
    out = small_disk / "out"
    started = Started(out=out)
    started.wait_for_log("worker-all", "works for")
    ballast = disks.fill(small_disk, 1_500_000)
    said = started._process.communicate(timeout=PATIENCE_S)[0]
    assert started._process.returncode == 2, said
    assert "disk" in said.splitlines()[-1]
    assert "Traceback" not in said
    ballast.unlink()
    done = run(command(out, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr


def heads(out: Path) -> dict[str, int]:
    return {
        branch.name: max(int(path.name) for path in branch.iterdir())
        for branch in (out / "store").iterdir()
        if not branch.name.startswith(".") and branch.is_dir()
    }
