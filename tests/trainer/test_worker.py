"""`python -m trainer.worker` as a supervisor sees it, where it ends before any work: its status and its line.

Workers at work are in `tests/faults`.
"""

import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.faults.recipes import small
from trainer.queue.client import Queue
from trainer.queue.server import URL_VARIABLE, Server
from trainer.worker import chosen_branches, main, unique_name


@pytest.fixture
def queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Queue]:
    """A server with one run, as its coordinator has written it."""
    monkeypatch.setenv(URL_VARIABLE, server.url)
    queue = Queue(server.url)
    queue.put_run("small", {"state": "running", "recipe": small().model_dump(mode="json")})
    yield queue
    queue.close()


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a worker leaves on stderr."""
    (text,) = capsys.readouterr().err.splitlines()
    return text


def test_without_a_queue_it_says_which_variable_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert main(["--branch", "text"]) == 2
    assert line(capsys).startswith(f"worker: {URL_VARIABLE}: not set")


def test_a_branch_that_the_run_lacks_is_named_with_those_it_has(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--branch", "audio", "--run", "small"]) == 2
    assert line(capsys) == "worker: --branch audio: small has no such branch; it has text, image, video"


def test_a_run_that_is_finished_needs_no_worker(queue: Queue) -> None:
    queue.put_run("small", {"state": "finished", "recipe": small().model_dump(mode="json")})
    assert main(["--branch", "all", "--run", "small"]) == 0


def test_data_that_differs_from_the_other_workers_is_refused(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.agree("small", "data:text", "0" * 64)
    assert main(["--branch", "text"]) == 2
    assert line(capsys).startswith("worker: the data of text is not what the other workers of small have")


def test_two_workers_of_one_machine_never_have_one_name(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    with unique_name("twin"):
        assert main(["--branch", "text", "--name", "twin"]) == 2
        assert "a worker of that name runs on this machine" in line(capsys)
    with unique_name(None) as (first, _), unique_name(None) as (second, _):
        assert first != second


def test_a_name_is_free_again_however_its_process_ended() -> None:
    program = (
        "import os\nfrom trainer.worker import unique_name\n"
        "with unique_name('phoenix-of-a-test'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    with unique_name("phoenix-of-a-test") as (_, lock):
        # The same as the dead one had: what it leased is this one's.
        assert (Path(tempfile.gettempdir()) / "coevo-worker-phoenix-of-a-test.lock").read_text() == lock != ""


def test_branches_are_those_named_each_once_or_all() -> None:
    known = ["text", "image", "video"]
    assert chosen_branches(["video", "text", "video"], known, "run") == ["video", "text"]
    assert chosen_branches(["all"], known, "run") == known


def test_help_is_what_a_person_types_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--branch NAME" in capsys.readouterr().out


def test_a_mistyped_flag_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--brnch", "text"])
    assert end.value.code == 2
    assert line(capsys).startswith("python -m trainer.worker: --brnch: no such flag; did you mean --branch?")
