"""The real service for a bench: started, waited for, ended with the block."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 600.0  # a base of several gigabytes loads and compiles for minutes


@contextmanager
def served(*flags: str) -> Generator[str]:
    """Its address. The store is a new one, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="coevo-bench-") as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "clients.cli", "serve", "--port=0", f"--store={folder}/store", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            yield _address(log, process)
        finally:
            process.terminate()
            process.wait()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if match := re.search(r"coevo serve: (http://\S+) serves", log.read_text()):
            return match[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise TimeoutError(f"the service did not start:\n{log.read_text()[-2000:]}")
