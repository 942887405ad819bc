"""Bars and lines of long work, as they reach a person."""

import os
import pty
import subprocess
import sys

import pytest

from trainer.reporting.progress import Progress, duration

PROGRAM = """
from trainer.reporting.progress import Progress
with Progress("merging", "tensors") as progress:
    for done in range(11):
        progress.show(done, 10)
"""


def test_without_a_terminal_a_line_every_so_often_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("examining", "answers", every_s=0.0) as progress:
        progress.show(100, 300)  # as work that goes on begins
        progress.show(200, 300)
    with Progress("examining", "answers") as progress:
        progress.show(0, 300)
        progress.show(299, 300)  # too soon for a line
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "examining: 200 of 300 answers, 0 s left\n"


def test_a_terminal_shows_a_bar_within_its_width() -> None:
    terminal, its_end = pty.openpty()
    environ = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environ, stderr=its_end, check=True)
    os.close(its_end)
    text = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "merging" in text
    assert "10/10" in text


@pytest.mark.parametrize(("seconds", "text"), [(5.2, "5 s"), (150, "2 min"), (9000, "2.5 h")])
def test_a_duration_has_the_unit_that_a_person_takes(seconds: float, text: str) -> None:
    assert duration(seconds) == text
