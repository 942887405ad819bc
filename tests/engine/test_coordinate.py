"""A store that has another run's branches: the coordinator of a second run is refused, and says what to do."""

from pathlib import Path

import pytest

from clients.cli import main
from tests.engine.service_process import ServiceProcess
from trainer.queue.client import Job, Queue
from trainer.queue.server import start
from trainer.recipe.file import load, run_id

pytestmark = pytest.mark.engine

RECIPE = """
extends = "miniature"
name = "second"
media = {{ {media} }}
method = {{ kind = "rlvr", steps = 2 }}
branches.{branch}.capabilities = ["text"]
"""


@pytest.fixture
def queue(tmp_path: Path, service: ServiceProcess, monkeypatch: pytest.MonkeyPatch):
    with start(tmp_path / "queue") as server:
        monkeypatch.setenv("COEVO_REDIS_URL", server.url)
        monkeypatch.setenv("COEVO_SERVICE_URL", service.url)
        yield Queue(server.url)


def write_recipe(path: Path, service: ServiceProcess, branch: str) -> Path:
    """A recipe of the service's own pixels, for else it would be refused for them."""
    with service.client() as http:
        media = http.get("/adapters").json()["media"]
    path.write_text(RECIPE.format(branch=branch, media=", ".join(f"{key} = {value}" for key, value in media.items())))
    return path


def test_a_second_run_with_branches_of_the_first_is_told_what_to_do(
    service: ServiceProcess, queue: Queue, adapter_folders: dict[str, Path], tmp_path: Path, capsys
) -> None:
    assert main(["publish", str(adapter_folders["thin"]), "shared"]) == 0
    recipe = write_recipe(tmp_path / "second.toml", service, "shared")
    capsys.readouterr()
    assert main(["coordinate", str(recipe)]) == 2
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("coevo coordinate: "))
    run = run_id(load(recipe))
    assert line.startswith(
        f"coevo coordinate: shared: the store has it at revision 1, made by hand and not by {run}; "
    ), said
    assert line.endswith(
        "start the service with another --store, give this recipe's branches other names, or go on with the recipe "
        "that began it"
    )
    assert queue.runs() == {}


def test_two_runs_that_begin_at_once_do_not_share_a_branch(
    service: ServiceProcess, queue: Queue, tmp_path: Path, capsys
) -> None:
    queue.reconcile("store", {})
    queue.enqueue(Job("first:begun:0", "first", "begun", "rlvr", 0, 2))
    assert main(["coordinate", str(write_recipe(tmp_path / "second.toml", service, "begun"))]) == 2
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("coevo coordinate: "))
    assert line.startswith("coevo coordinate: begun: the queue has jobs of first for it, and this is second-"), said
    assert "give this recipe's branches other names, take another store and queue" in line
