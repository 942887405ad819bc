"""The table of accuracies as a person sees it."""

import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
from trainer.evaluation.exams import ExamResult, mean_results
from trainer.evaluation.intervals import Interval
from trainer.reporting.tables import show
value, gain = Interval(0.625, 0.08), Interval(0.03, 0.08)
results = [
    ExamResult(model, exam, exam, way, value, gain, 0.2, 256, 0.0, 0.0, 5.0)
    for exam in ("text", "image", "video") for way in ("greedy", "avg@4") for model in ("base", "image@12", "merged")
]
show("miniature", results, mean_results(results))
"""


@pytest.mark.parametrize(("columns", "tables"), [(80, 2), (140, 1)])
def test_a_narrow_terminal_cuts_nothing_off(columns: int, tables: int) -> None:
    terminal, its_end = pty.openpty()
    environ = os.environ | {"COLUMNS": str(columns), "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environ, stdout=its_end, check=True)
    os.close(its_end)
    text = re.sub(r"\x1b\[[0-9;]*m", "", os.read(terminal, 100_000).decode())
    os.close(terminal)
    assert text.count("accuracy in %") == tables
    assert text.count("looks at nothing") == tables
    assert text.count("image@12") == tables
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
