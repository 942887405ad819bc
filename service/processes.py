"""Child processes that end when their parent does, however that ended. On Linux; elsewhere they are on their own.

A child can tell its parent that it does its work now, which is more than that it lives.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

import psutil

READY_VARIABLE = "COEVO_READY_FD"
"""The descriptor on which a child tells its parent that it is ready; not set where nobody listens."""

ARENAS_VARIABLE, ARENAS = "MALLOC_ARENA_MAX", 2
"""How many pieces of memory glibc keeps for all threads. By default each thread has one of its own, which stays as
large as it ever was: gigabytes for every thread that has run an update."""
LARGE_BYTES = 2**28
"""Blocks up to that size, and as much free memory, stay with a process that computes on a CPU. By default glibc returns
blocks of 32 MB and more at once, and Linux fills each page of the next one with zeros: half the time of logits in
bfloat16."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h

# Run by a fresh interpreter that then becomes the child: a thread-safe way to set what dies with whom.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[3], sys.argv[3:])
"""


def die_with_parent(command: Sequence[str], number: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command that starts `command` so that it gets a signal when the thread that started it is gone."""
    if sys.platform != "linux":
        return [*command]
    return [sys.executable, "-S", "-E", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(number)), *command]


def tell_ready() -> None:
    """Tells the parent that this process does its work from now on."""
    if descriptor := os.environ.pop(READY_VARIABLE, None):
        with os.fdopen(int(descriptor), "wb", buffering=0) as pipe:
            pipe.write(b"\n")


def share_arenas() -> None:
    """Arenas of a process that runs already, for the threads that it will have."""
    if sys.platform == "linux" and ARENAS_VARIABLE not in os.environ:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)


def keep_large_blocks() -> None:
    """Memory of large blocks is used again, in this process."""
    if sys.platform == "linux":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)


def cpu_seconds(pid: int | None = None) -> float:
    """Seconds that a process and all below it have computed, this one by default; none of one that is gone."""
    try:
        process = psutil.Process(pid)
        times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(each.user + each.system for each in times)
