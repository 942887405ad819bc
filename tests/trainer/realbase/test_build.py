"""The real base as a person builds it, stopped on the way; shortly taught, so that it knows little."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from clients.cli import main
from trainer.realbase.embed import MODULES

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
STEPS = "2"


def test_a_build_that_is_killed_goes_on_and_is_a_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, draft = tmp_path / "base", tmp_path / "base.draft"
    words = ["base", "build", "real", "--steps", STEPS, "--out", str(out)]
    building = subprocess.Popen([sys.executable, "-m", "clients.cli", *words], stdout=subprocess.PIPE, text=True)
    while not (draft / "seeing").exists() and building.poll() is None:
        time.sleep(1)
    building.kill()
    said, _ = building.communicate()
    assert said == "building the real base, about 40 minutes on two cores; stopped, the same command goes on\n"
    learnt_at = (draft / "seeing").stat().st_mtime_ns
    with safe_open(draft / "seeing" / "model.safetensors", "pt") as weights:
        before = {name: weights.get_tensor(name) for name in weights.keys() if ".layers.0." in name}  # noqa: SIM118
    assert main(words) == 0
    assert str(out) in capsys.readouterr().out
    assert not draft.exists()
    assert learnt_at < out.stat().st_mtime_ns
    assert json.loads((out / "config.json").read_text())["coevo_adapter_modules"] == list(MODULES)
    with safe_open(out / "model.safetensors", "pt") as weights:
        same = {name for name, weight in before.items() if (weights.get_tensor(name) == weight).all()}
    language = {name for name in before if ".language_model." in name}
    assert language - same == {name for name in language if "_proj." in name}

    assert main(["base", "check", "--base", str(out), "--questions", "2", "--samples", "2"]) == 0
    table = capsys.readouterr().out
    assert [len(re.findall(name, table)) for name in ("text", "image", "video")] == [3, 3, 3]
