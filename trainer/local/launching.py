"""Starts a process of a run: here, or wherever a `Launch` puts it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from service.processes import die_with_parent

LOST = -255
"""The status of what was gone with its node: no signal has that number."""


class LostError(Exception):
    """A node is gone with something whose address the others have. With what is in its folder the run begins again."""


class Child(Protocol):
    """A process that was started: as much of a `Popen` as is needed of it."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Launch(Protocol):
    """Starts `python WORDS` with these variables, a log, and a signal that it gets when its parent is gone."""

    def __call__(
        self, name: str, words: Sequence[str], environ: Mapping[str, str], log: Path, death: signal.Signals
    ) -> Child: ...


def launch_here(
    name: str, words: Sequence[str], environ: Mapping[str, str], log: Path, death: signal.Signals
) -> subprocess.Popen[bytes]:
    """As a child of this process."""
    with log.open("a") as file:
        return subprocess.Popen(
            die_with_parent([sys.executable, *words], death),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | environ,
            start_new_session=True,
        )
