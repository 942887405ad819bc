"""What would wait in vain says so at once: a wrong password of the queue server, a service that wants a key."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from fastapi import FastAPI
from pydantic import SecretStr

from clients.cli import main
from service.http.auth import ApiKey
from service.routes import runs as runs_routes
from service.runs import Runs
from tests.faults.recipes import written
from tests.serving import serving
from trainer.orchestration.endings import MISTAKE
from trainer.queue.client import Queue
from trainer.queue.server import start
from trainer.recipe.file import load, run_id

pytestmark = pytest.mark.reference

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/miniature.toml"
RUN = run_id(load(RECIPE))
PATIENCE_S = 120.0
NOWHERE = "http://127.0.0.1:9"
WAITING = {
    "worker": ("trainer.worker", "--branch", "all"),
    "coevo coordinate": ("clients.cli", "coordinate", str(RECIPE)),
    "coevo serve": ("clients.cli", "serve", str(RECIPE), "--port=0"),
    "coevo status": ("clients.cli", "status"),
    "coevo jobs": ("clients.cli", "jobs"),
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a queue server with a password."""
    with start(tmp_path_factory.mktemp("guarded")) as server:
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            client.config_set("requirepass", "right")
        yield server.url


@pytest.mark.parametrize(("program", "key"), [*((program, ":wrong@") for program in WAITING), ("coevo jobs", "")])
def test_a_wrong_password_of_the_queue_server_is_one_line(program: str, key: str, guarded: str, tmp_path: Path) -> None:
    url = guarded.replace("redis://", f"redis://{key}")
    environ = os.environ | {"COEVO_REDIS_URL": url, "COEVO_SERVICE_URL": NOWHERE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *WAITING[program]],
        cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == MISTAKE
    assert line.startswith(f"{program}: {guarded}: the queue server refuses its user or password")
    assert line.endswith("mend COEVO_REDIS_URL")
    assert "wrong" not in line


@pytest.fixture
def locked(tmp_path: Path) -> Generator[str]:
    """The address of a service with a key; its routes of runs alone, which need no engine."""
    app = FastAPI()
    app.state.service = SimpleNamespace(runs=Runs(tmp_path / "runs"))
    app.include_router(runs_routes.router)
    with serving(ApiKey(app, SecretStr("right"))) as address:
        yield address


def test_a_service_that_wants_a_key_is_told_with_the_variable(
    locked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COEVO_SERVICE_URL", locked)
    for key in ("", "wrong"):
        monkeypatch.setenv("COEVO_API_KEY", key)
        assert main(["status"]) == MISTAKE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"coevo status: {locked}: the service wants another key; set COEVO_API_KEY to ")


@pytest.mark.parametrize("program", ["worker", "coevo coordinate"])
def test_nobody_waits_for_a_service_whose_key_he_lacks(program: str, locked: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, "keyless", capabilities=("text",))
    with start(tmp_path / "queue") as server:
        queue = Queue(server.url)
        queue.put_run("keyless", {"state": "running", "recipe": load(recipe).model_dump(mode="json")})
        queue.close()
        words = ("clients.cli", "coordinate", str(recipe)) if program != "worker" else WAITING["worker"]
        environ = {"COEVO_REDIS_URL": server.url, "COEVO_SERVICE_URL": locked, "COEVO_API_KEY": "wrong"}
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, env=os.environ | environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == MISTAKE
    assert f"{program}: {locked}: the service wants another key; set COEVO_API_KEY" in done.stderr


def test_a_coordinator_waits_for_its_service_and_hands_over(tmp_path: Path) -> None:
    with start(tmp_path / "queue") as server:
        command = [sys.executable, "-m", "clients.cli", "coordinate", str(RECIPE)]
        environ = os.environ | {"COEVO_REDIS_URL": server.url, "COEVO_SERVICE_URL": NOWHERE}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT)
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        assert [line["run"] for line in lines] == [RUN, RUN]
        assert lines[0]["event"] == f"coordinates {RUN}"
        assert f"{NOWHERE}: connection refused; trying again for " in lines[1]["event"]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    last = json.loads(rest.splitlines()[-1])
    assert last["event"] == f"stopped; started again with the same recipe it goes on with {RUN}"
