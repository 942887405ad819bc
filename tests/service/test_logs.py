"""Logs as they come out of a process: one form for all loggers, with the fields of where they were written."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import logging, threading, warnings
from structlog.contextvars import bind_contextvars
library = logging.getLogger("uvicorn.error")
library.addHandler(logging.StreamHandler())  # as libraries do it when they are imported
library.propagate = False
from service.logs import set_up
set_up(run="small-1", worker="w")
bind_contextvars(branch="text", step=3)
log = logging.getLogger("worker")
log.info("%s works", "w", extra={"_ray_timestamp_ns": 1})  # as every record has it where Ray is imported
try:
    {}["key"]
except KeyError:
    log.exception("it broke")
library.warning("slow")
logging.getLogger("httpx").info("a line a request")
warnings.warn("old")
thread = threading.Thread(target=logging.getLogger("trainer.orchestration.heartbeat").warning, args=["away"])
thread.start(), thread.join()
"""


def said(**environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr


def test_in_a_file_every_line_is_json_with_its_fields() -> None:
    lines = [json.loads(line) for line in said(COEVO_LOG="").splitlines()]
    assert [line["event"] for line in lines][:3] == ["w works", "it broke", "slow"]
    assert [*lines[0]] == ["time", "level", "logger", "run", "worker", "branch", "step", "event"]
    assert {key: lines[0][key] for key in lines[0] if key != "time"} == {
        "level": "info", "logger": "worker", "run": "small-1", "worker": "w", "branch": "text", "step": 3,
        "event": "w works",
    }  # fmt: skip
    assert lines[1]["exception"].endswith("KeyError: 'key'")
    assert (lines[2]["logger"], lines[2]["branch"]) == ("uvicorn.error", "text")
    assert "old" in lines[3]["event"]
    # A thread has the process's fields, and none of the context that it was made in.
    assert {**lines[4], "time": ""} == {
        "time": "", "level": "warning", "logger": "trainer.orchestration.heartbeat", "run": "small-1", "worker": "w",
        "event": "away",
    }  # fmt: skip
    assert len(lines) == 5


def test_a_terminal_shows_lines_for_people() -> None:
    terminal, its_end = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, stderr=its_end, check=True
    )
    os.close(its_end)
    text = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "[info] worker: w works branch=text step=3\r\n" in text
    assert "KeyError: 'key'\r\n" in text
    assert "small-1" not in text


def test_a_variable_chooses_the_form() -> None:
    assert "[info] worker: w works branch=text step=3\n" in said(COEVO_LOG="console")
    with pytest.raises(subprocess.CalledProcessError) as error:
        said(COEVO_LOG="jsn")
    assert error.value.stderr.endswith("COEVO_LOG=jsn: no such form; take json or console\n")
