"""Named points at which a test can end or stop this process: `COEVO_FAULT=after-commit`, or `stop:gathered:image@3`.

Of several points, separated by commas, the first life of a supervised process takes the first, the next life takes the
next, and what comes after them lives on.
"""

import os
import signal

RESTARTS_VARIABLE = "COEVO_RESTARTS"
"""How often this process was started again, within its supervisor's window."""

_POINTS = dict(enumerate(os.environ.get("COEVO_FAULT", "").split(",")))
_POINT = _POINTS.get(int(os.environ.get(RESTARTS_VARIABLE, "0")))


def fault(point: str) -> None:
    """Ends this process as a kill would, or stops it as `kill -STOP` does, where a test has asked for it."""
    if point == _POINT:
        os.kill(os.getpid(), signal.SIGKILL)
    if f"stop:{point}" == _POINT:
        os.kill(os.getpid(), signal.SIGSTOP)
