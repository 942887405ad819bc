"""Every command as a person types it: what it does, and what it refuses, in one line with the remedy.

The service behind `status` and `rollouts` has the routes of runs alone, so that no engine is needed.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI

from clients.cli import COMMANDS, main
from service.routes import runs as runs_routes
from service.runs import Runs
from tests.adapters.files import write_adapter
from tests.serving import serving
from trainer.queue.client import Job, Lease, Queue
from trainer.queue.server import start
from trainer.recipe.file import load, run_id

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/miniature.toml"
RUN = run_id(load(RECIPE))
PATIENCE_S = 60.0
# What a command prints when it is used rightly: whole pieces of lines, in their order.
RIGHT = {
    "doctor": (f"doctor {RECIPE} --card-gib 80", ["OK    Python: ", "recipe fits: ", " of 80.0 (planned)"]),
    "check": (f"check {RECIPE}", ["recipe fits: ", "capabilities.text.data: ", "capabilities.video.reward: "]),
    "plan": (f"plan {RECIPE}", ["segment\tkind\tsteps", "\trlvr\t", "\topd\t"]),
    "recipe": ("recipe keys group_size", ["rollout.group_size", "integer"]),
    "recipes": ("recipes", ["miniature\tThe whole method in minutes", "paper/mopd\tMOPD: "]),
    "base": ("base path", ["trainer/miniature/base"]),
    "status": (
        f"status {RUN}",
        ["branch\tstep", f"{RUN}\ttext\t2/", "0.200", "image cannot learn yet", "failed for good: image-1: no memory"],
    ),
    "jobs": ("jobs", ["branch\thead\tjob", "text\t2\ttext-3", "w-1", "coevo jobs retry image"]),
    "merge": ("merge {text} {image} --base miniature --adapter {here}/merged", ["adapter: ", "merged"]),
    "bench": ("bench queue --most 1", ["queue: claim, 1 workers"]),
}
# Used rightly where an engine, or minutes, are at hand; and the file that types it.
ELSEWHERE = {
    "serve": "tests/engine/service_process.py",
    "run": "tests/e2e/test_run.py",
    "compare": "tests/e2e/test_compare.py",
    "eval": "tests/engine/test_evaluate.py",
    "filter": "tests/engine/test_filter.py",
    "publish": "tests/engine/test_publish.py",
    "retire": "tests/engine/test_publish.py",
    "rollouts": "tests/trainer/commands/test_rollouts.py",
    "coordinate": "tests/clients/test_waiting.py",
    "look": "tests/page/conftest.py",
}
WRONG = {
    "serve": ("serve --set engine.kv_cache_gib=1", "--set: there is no recipe to set it in; name one"),
    "doctor": ("doctor nothing.toml", "nothing.toml: "),
    "check": (f"check {RECIPE} --set rollout.promts=3", "rollout.promts"),
    "run": (f"run {ROOT}/recipes/miniature/compare.toml", "compares systems; take coevo compare"),
    "coordinate": (f"coordinate {RECIPE} --traking x", "--traking: no such flag; did you mean --tracking?"),
    "status": ("status another-1", f"another-1: no such run; there are {RUN}"),
    "look": ("look {here}", "no run in it; name a folder of coevo run, such as out/demo-0, or a URL"),
    "rollouts": ("rollouts {here} text 3", "no rollouts of text@3; name the folder of a run"),
    "jobs": ("jobs retry video", "video: no job of it has failed for good; image has"),
    "plan": (f"plan {RECIPE} --set method.cycles=0", "method.cycles"),
    "compare": (f"compare {RECIPE} --seeds 0", "--seeds 0: take 1 or more"),
    "eval": (f"eval {RECIPE} --questions 0", "--questions 0: nothing would be asked; take 1 or more"),
    "filter": (f"filter {RECIPE} audio --out kept.jsonl", "audio"),
    "publish": ("publish {here}/none text", "name a folder as PEFT's save_pretrained makes"),
    "retire": ("retire Text", "'Text' is no name; take a lower-case letter"),
    "merge": ("merge {text} {image}", "nothing to make; name a new folder with --out, --adapter or both"),
    "bench": ("bench pipelin", "pipelin: no such name; did you mean pipeline? (coevo bench --help)"),
    "base": ("base path nowhere/at-all", "`hf download nowhere/at-all` fetches it"),
    "recipes": ("recipes miniature", "miniature: not expected here"),
    "recipe": ("recipe schema --out nowhere/schema.json", "name a file in a folder"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, str]]:
    """The variables of a run that goes on: text makes its third step, image has failed for good."""
    folder = tmp_path_factory.mktemp("running")
    with start(folder / "queue") as server:
        queue = Queue(server.url)
        queue.reconcile("store", {"text": (2, 0), "image": (0, 0)})
        queue.put_run(RUN, {"recipe": load(RECIPE).model_dump(mode="json"), "state": "running"})
        for branch, step in (("text", 3), ("image", 1)):
            queue.enqueue(Job(f"{branch}-{step}", RUN, branch, "rlvr", step - 1, 1))
        queue.claim("text", "w-1")
        lease = queue.claim("image", "w-2")
        assert isinstance(lease, Lease)
        queue.release(lease, "no memory", fatal=True)
        queue.tell(RUN, "run", state="running", name="miniature", branches={"text": 9, "image": 9, "video": 9})
        queue.tell(RUN, "step", branch="text", step=2, metrics={"native/reward": 0.2})
        queue.tell(RUN, "unrewarded", branch="image", step=1, text="image cannot learn yet: all 8 completions got 0")
        runs = Runs(folder / "runs")
        runs.drain(queue)
        app = FastAPI()
        app.state.service = SimpleNamespace(runs=runs)
        app.include_router(runs_routes.router)
        with serving(app) as address:
            yield {"COEVO_REDIS_URL": server.url, "COEVO_SERVICE_URL": address}
        queue.close()


@pytest.fixture
def door(tmp_path: Path, running: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Types a line in an empty folder, and gives the exit code."""
    adapters = {name: write_adapter(tmp_path / name, fill) for name, fill in {"text": 0.1, "image": 0.2}.items()}
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name, value in running.items():
        monkeypatch.setenv(name, value)

    def type_line(line: str) -> int:
        try:
            return main(line.format(here=here, **adapters).split())
        except SystemExit as end:  # argparse's way
            return int(end.code or 0)

    return type_line


def test_every_command_is_used_rightly_and_wrongly_somewhere() -> None:
    assert RIGHT.keys() | ELSEWHERE.keys() == COMMANDS.keys()
    assert not RIGHT.keys() & ELSEWHERE.keys()
    assert WRONG.keys() == COMMANDS.keys()
    for name, file in ELSEWHERE.items():
        assert re.search(rf'("clients.cli", |main\(\[)"{name}"', (ROOT / file).read_text()), f"{file} types no {name}"


@pytest.mark.parametrize("name", RIGHT)
def test_a_command_does_what_it_says(name: str, door, capsys: pytest.CaptureFixture[str]) -> None:
    line, pieces = RIGHT[name]
    assert door(line) == 0
    output = capsys.readouterr().out
    ends = 0
    for piece in pieces:
        assert piece in output[ends:], output
        ends = output.index(piece, ends) + len(piece)


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line_with_the_remedy(name: str, door, capsys: pytest.CaptureFixture[str]) -> None:
    line, message = WRONG[name]
    assert door(line) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"coevo {name}: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not list(Path().iterdir())


def test_help_and_mistakes_import_nothing_heavy(tmp_path: Path) -> None:
    lines = [*(f"{name} --help" for name in COMMANDS), *(line for line, _ in WRONG.values() if "{" not in line)]
    program = (
        "import json, sys, clients.cli\n"
        "loaded = {}\n"
        f"for line in {json.dumps(lines)}:\n"
        "    try: clients.cli.main(line.split())\n"
        "    except SystemExit: pass\n"
        "    loaded[line] = sorted({'torch', 'vllm', 'transformers', 'datasets'} & set(sys.modules))\n"
        "print(json.dumps(loaded))"
    )
    environ = os.environ | {"PYTHONPATH": str(ROOT), "COEVO_SERVICE_URL": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {line: [] for line in lines}


def test_a_failed_job_is_tried_again(door, capsys: pytest.CaptureFixture[str]) -> None:
    """The last test here, for `running` has no failed job after it."""
    assert door("jobs retry image") == 0
    assert capsys.readouterr().out == "image: tried again\n"
    assert door("jobs") == 0
    assert "failed for good" not in capsys.readouterr().out
