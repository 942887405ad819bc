"""The real service as a process, on a port of its own choosing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx


class ServiceProcess:
    """`coevo serve` and its log; `stop` ends the whole family."""

    def __init__(self, store: Path, *flags: str, **environ: str) -> None:
        self.store = store
        self._flags = flags
        self._environ = environ
        self._log = store.with_suffix(".log")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "clients.cli", "serve", "--port=0", f"--store={self.store}"]
        numbers = ["--max-model-len=512", "--max-lora-rank=16"]
        with self._log.open("a") as log:
            log.write("--- start ---\n")
            log.flush()
            self._process = subprocess.Popen(
                [*command, *numbers, *self._flags],
                stdout=log,
                stderr=log,
                env=os.environ | self._environ,
                start_new_session=True,
            )
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            tail = self._log.read_text().rsplit("--- start ---", 1)[1]
            if found := re.search(r"coevo serve: (http://\S+) serves", tail):
                return found[1]
            assert self._process.poll() is None, tail
            time.sleep(0.1)
        raise AssertionError(f"the service did not start: {self._log.read_text()}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)
