"""`coevo run` as a person uses it: started, interrupted, resumed, started wrongly."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SMALL = (
    "method.cycles=1",
    "method.rlvr_steps=2",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "rollout.group_size=4",
    *(f"capabilities.{name}.data.size=64" for name in ("text", "image", "video")),
)
PATIENCE_S = 240.0


def command(out: Path, *words: str) -> list[str]:
    sets = [word for one in SMALL for word in ("--set", one)]
    return [sys.executable, "-m", "clients.cli", "run", "recipes/miniature.toml", *sets, "--out", str(out), *words]


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_a_run_that_is_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("text@1 of 3: reward"):
            break
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 130
    assert f"--out {out} --resume" in said
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    before = heads(out)
    assert 1 <= sum(before.values()) < 9

    assert "holds a run; add --resume" in run(command(out)).stderr
    other = run(command(out, "--resume", "--set", "seed=7"))
    assert other.returncode == 2
    assert "a run of another recipe" in other.stderr

    done = run(command(out, "--resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is finished" in done.stdout
    assert heads(out) == {"text": 3, "image": 3, "video": 3}
    (events,) = out.glob("runs/*/events.jsonl")
    steps = [json.loads(line) for line in events.read_text().splitlines()]
    made = [(one["branch"], one["step"]) for one in steps if one["kind"] == "step"]
    assert sorted(made) == sorted((name, number) for name in ("text", "image", "video") for number in (1, 2, 3))


def test_what_it_cannot_start_it_says_in_one_line(tmp_path: Path) -> None:
    wrong = run(command(tmp_path / "a", "--set", "base.name=/no/such/base"))
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    away = os.environ | {"COEVO_REDIS_URL": "redis://127.0.0.1:1/0"}
    began = time.monotonic()
    done = subprocess.run(command(tmp_path / "b"), capture_output=True, text=True, env=away, check=False)
    assert done.returncode == 2
    assert "redis://127.0.0.1:1/0: cannot be used" in done.stderr
    assert time.monotonic() - began < PATIENCE_S


def heads(out: Path) -> dict[str, int]:
    return {
        branch.name: max(int(path.name) for path in branch.iterdir())
        for branch in (out / "store").iterdir()
        if not branch.name.startswith(".") and branch.is_dir()
    }
