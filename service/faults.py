"""Named points at which a test can end, stop or hang this process.

`COEVO_FAULT=after-commit` ends it there, `stop:gathered:image@3` stops it as a whole, `hang:learnt:image@3` stops the
thread alone.

Of several points, separated by commas, the first life of a supervised process takes the first, the next life takes the
next, and what comes after them lives on.
"""

import os
import signal
import threading

RESTARTS_VARIABLE = "COEVO_RESTARTS"
"""How often this process was started again, within its supervisor's window."""

_POINTS = dict(enumerate(os.environ.get("COEVO_FAULT", "").split(",")))
_POINT = _POINTS.get(int(os.environ.get(RESTARTS_VARIABLE, "0")))


def fault(point: str) -> None:
    """Ends this process as a kill would, stops it as `kill -STOP` does, or waits for ever: where a test asks for it."""
    if point == _POINT:
        os.kill(os.getpid(), signal.SIGKILL)
    if f"stop:{point}" == _POINT:
        os.kill(os.getpid(), signal.SIGSTOP)
    if f"hang:{point}" == _POINT:
        threading.Event().wait()
