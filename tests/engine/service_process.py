"""The real service as a process, on a port of its own choosing."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

PATIENCE_S = 280.0  # a little less than pytest's, which shows no log


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
        try:
            self.url = self._wait_for_url()
        except BaseException:
            self.stop()  # nobody else will: a fixture that was not made is not torn down
            raise

    def _wait_for_url(self) -> str:
        self.wait_until(lambda: self.lives > 0)
        (url,) = set(re.findall(r"coevo serve: (http://\S+) serves", self.log))
        return url

    @property
    def log(self) -> str:
        """Since the last `start`."""
        return self._log.read_text().rsplit("--- start ---", 1)[1]

    @property
    def lives(self) -> int:
        """How often the service has come up since then."""
        return len(re.findall(r"coevo serve: http://\S+ serves", self.log))

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Waits for a condition while the parent lives."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def wait_for_end(self) -> int:
        """The exit status of the parent."""
        return self._process.wait(timeout=PATIENCE_S)

    @property
    def has_ended(self) -> bool:
        """The parent: then nobody starts the service again."""
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=self.headers | headers)

    @property
    def headers(self) -> dict[str, str]:
        """With the key, where one was set."""
        key = self._environ.get("COEVO_API_KEY")
        return {"authorization": f"Bearer {key}"} if key else {}

    @property
    def family(self) -> list[psutil.Process]:
        """The parent, the service, the engine."""
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    @property
    def engine_core(self) -> psutil.Process:
        (core,) = self.engine_cores
        return core

    @property
    def engine_cores(self) -> list[psutil.Process]:
        """In the order of their numbers."""
        return sorted(
            (process for process in self.family if process.name().startswith("VLLM::EngineCore")),
            key=psutil.Process.name,
        )

    @property
    def memory_mib(self) -> int:
        return sum(process.memory_info().rss for process in self.family) >> 20
