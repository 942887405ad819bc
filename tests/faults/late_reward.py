"""A reward whose module cannot be imported until a file is there."""

import os
from pathlib import Path

if not Path(os.environ["COEVO_TEST_MARKER"]).exists():
    raise ImportError("not yet")


def judge(completion: str, answer: str) -> float:
    return float(answer in completion)
