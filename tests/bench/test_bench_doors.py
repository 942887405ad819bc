"""Every bench as a person types it, `coevo bench NAME`, with its smallest arguments, and one mistake with each.

`gpu_step` and `queue` are typed in test_benches and tests/clients/test_doors. What takes longer is in the soak.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.command import NAMES
from clients.cli import main
from tests.text_bases import write_text_base

# Arguments, and whole pieces of what is printed, in their order.
RIGHT = {
    "merge": ("--layers 1 --rank 1", ["1 layers; 3 adapters of rank 1", "changed: ", "merge: ", "merge_memory: "]),
}
RIGHT_IN_MINUTES = {
    "branches": ("--most 2 --steps 2", ["| 1 | ", "| 2 | ", "One more branch takes "]),
    "experts": ("--steps 1 --seeds 1 --questions 2", ["mean of 1 seeds", "base  text: ", "video  text: "]),
    "generate": ("--questions 1 --rounds 1", ["round 1: ", "generate: "]),
    "gpu": ("--tiny --out gpu", ["service started", "scores of kit", "scoring, prompt once", "opd step", "gpu/kit.md"]),
    "growth": ("", ["G = 32", "one more adapter: "]),
    "pipeline": ("--rounds 1", ["prefetch = 1: ", "prefetch = 0: ", " of the time"]),
    "rewards": ("--children 1", ["rewards: miniature answers: ", "rewards: LaTeX pairs: "]),
    "score": ("--rounds 1", ["score_stock: ", "score_hf: ", "score_engine: "]),
    "step": ("--rounds 1", ["update_270_64: ", "memory_270_64: ", "step_text: ", "copd_step: "]),
}
WRONG = {
    "branches": ("--steps 1", "--steps 1: the first of each branch is left out; take 2 or more"),
    "experts": ("--seeds 0", "--seeds: take 1 or more, not 0"),
    "generate": ("--questions none", "--questions: take 1 or more, not none"),
    "gpu": ("--seconds 0", "--seconds: take 1 or more, not 0"),
    "gpu_step": ("--second 9 --tinny", "--tinny: no such flag; did you mean --tiny?"),
    "growth": ("--json {here}/none/rows.json", "there is no folder {here}/none; name a file in a folder that is there"),
    "merge": ("--method means", "--method means: no such value; did you mean mean?"),
    "pipeline": ("--rounds 0", "--rounds: take 1 or more, not 0"),
    "queue": ("--most 0", "--most: take 1 or more, not 0"),
    "rewards": ("--children 0", "--children: take 1 or more, not 0"),
    "score": ("--base {here}", "{here}: no config.json in this folder; name the folder of a Hugging Face checkpoint"),
    "step": ("--thread 0", "--threads: take 1 or more, not 0"),
}


def check_bench(name: str, line: str, pieces: list[str], folder: Path) -> None:
    """It prints what it measured, and writes the same as rows."""
    file = folder / "rows.json"
    command = [sys.executable, "-m", "clients.cli", "bench", name, *line.split(), f"--json={file}"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=1500, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    position = 0
    for piece in pieces:
        assert piece in done.stdout[position:], done.stdout
        position = done.stdout.index(piece, position) + len(piece)
    rows = json.loads(file.read_text())
    assert rows
    assert all({"what", "unit", "ours"} <= row.keys() for row in rows)


def test_every_bench_is_used_rightly_and_wrongly_somewhere() -> None:
    assert {*RIGHT, *RIGHT_IN_MINUTES, "gpu_step", "queue"} == NAMES.keys()
    assert WRONG.keys() == NAMES.keys()


@pytest.mark.parametrize("name", RIGHT)
def test_a_bench_measures_what_it_says(name: str, tmp_path: Path) -> None:
    check_bench(name, *RIGHT[name], tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", RIGHT_IN_MINUTES)
def test_a_bench_of_minutes_measures_what_it_says(name: str, tmp_path: Path) -> None:
    check_bench(name, *RIGHT_IN_MINUTES[name], tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1600)
@pytest.mark.parametrize(
    ("name", "line", "pieces"),
    [
        ("score", "--rounds 1", ["score_stock: ", "of CPU ", "score_hf: ", "score_engine: ", "score_growth_4: "]),
        ("step", "--rounds 1 --prompts 1 --tokens 8", ["words_update: ", "words_memory: ", "words_copd_step: "]),
    ],
)
def test_a_bench_of_another_base_measures_the_same(name: str, line: str, pieces: list[str], tmp_path: Path) -> None:
    base = write_text_base(tmp_path / "base", "llama")
    check_bench(name, f"{line} --base={base} --modules v_proj down_proj", pieces, tmp_path)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_with_a_bench_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line, message = WRONG[name]
    try:
        status = main(["bench", name, *line.format(here=tmp_path).split()])
    except SystemExit as end:  # argparse's way
        status = end.code
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    assert message.format(here=tmp_path) in output.err
    assert output.err.count("\n") == 1
