"""Processes of ours that start without importing torch again: forks of one that has.

Most of what these tests wait for would be imports. The nursery imports only what others wrote; a fork imports ours
itself, in an environment and a session of its own, and is from there on what `python -m MODULE` is.

Left out: a process that needs another interpreter or another network. It is started as usual.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LOOK_S = 0.02


class Nursery:
    """Starts at once, and is ready when it has imported; it ends, with its forks, when it is closed or we end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def fork(self, module: str, *words: str, log: Path, environ: Mapping[str, str]) -> "Fork":
        """`python -m module words` that appends what it says to its log."""
        order = {"words": [module, *words], "log": str(log), "environ": dict(environ)}
        return Fork(self, self._ask(order))

    def status(self, pid: int) -> int | None:
        """The exit status of a fork; None while it runs. A status is told once: then its number may be another's."""
        return self._ask({"pid": pid})

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Fork:
    """As much of a `subprocess.Popen` as is needed here."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.status(self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(_LOOK_S)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


# ---- the nursery's own process ----


def main() -> None:
    """Answers a line of JSON with one: what to become with the fork's number, that with the fork's status."""
    import_what_takes_long()
    forks: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            forks.discard(pid)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            forks.add(pid)
        else:
            become(order["words"], Path(order["log"]), order["environ"])
    for pid in forks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def import_what_takes_long() -> None:
    """Nothing of it starts a thread."""
    import httpx  # noqa: F401
    import pydantic  # noqa: F401
    import redis  # noqa: F401
    import torch.distributed
    import torch.nn.attention.flex_attention  # noqa: F401
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor  # noqa: F401


def become(words: Sequence[str], log: Path, environ: Mapping[str, str]) -> None:
    """This process is `python -m ...` from now on; it does not come back."""
    os.setsid()
    print(os.getpid(), flush=True)  # the answer: from now on it is a group that can be killed
    with Path(os.devnull).open() as nothing, log.open("a") as file:
        for here, there in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(here.fileno(), there)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # what is imported may have asked for it, in another environment
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    main()
