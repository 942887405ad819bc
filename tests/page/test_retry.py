"""A dead job tried again from the page, with a real queue behind the service's routes."""

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from adapters.store import Store
from service.files import RunFiles
from service.http import problems
from service.http.auth import OPEN_PATHS, ApiKey
from service.publishing.fence import QueueFence
from service.routes import history, jobs, page, runs
from service.runs import Runs
from tests.adapters.files import BASE
from tests.service.test_jobs import JOB, kill
from tests.serving import serving
from trainer.queue.client import Queue
from trainer.queue.server import start

pytestmark = pytest.mark.e2e
KEY = "a key of the test"


@pytest.fixture
def queue(tmp_path: Path) -> Generator[Queue]:
    with start(tmp_path / "queue") as server:
        queue = Queue(server.url)
        kill(queue)
        yield queue
        queue.close()


@pytest.fixture
def guarded(queue: Queue, demo: Path, tmp_path: Path) -> Generator[str]:
    """The routes that the screen asks, behind the key."""
    app = FastAPI()
    problems.install(app)
    for module in (page, history, runs, jobs):
        app.include_router(module.router)
    looked = Runs(demo / "runs", is_read_only=True)
    app.state.files = RunFiles(looked, demo / "runs", demo / "store")
    with Store(tmp_path / "store", BASE) as store:
        app.state.service = SimpleNamespace(runs=looked, fence=QueueFence(queue.url, store))
        with serving(ApiKey(app, SecretStr(KEY), {*OPEN_PATHS, *page.open_paths()})) as address:
            yield address


def test_a_button_tries_a_dead_job_again_with_the_key(page_of, guarded: str, queue: Queue) -> None:
    shown = page_of(guarded).page
    shown.goto(f"{guarded}/#/run/demo-1/alarms")
    shown.get_by_label("Key", exact=True).fill(KEY)
    shown.keyboard.press("Enter")
    button = shown.get_by_role("button", name=f"Try {JOB.id} again")
    button.wait_for()
    answer = shown.evaluate("fetch('/jobs/image/retry', {method: 'POST', body: '{}'}).then(r => r.status)")
    assert (answer, len(queue.dead())) == (401, 1)  # without the key nothing is tried
    button.click()
    button.wait_for(state="detached")
    assert queue.dead() == []
