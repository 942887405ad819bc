"""A real queue server that can be killed, frozen, emptied, and started again on the same port and folder."""

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import redis

from trainer.queue.server import start


class QueueProcess:
    """A server and its folder. A block starts and stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self._life = contextlib.ExitStack()
        self._frozen = False

    def __enter__(self) -> "QueueProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """On any free port at first, on the same one later."""
        self._server = self._life.enter_context(start(self.folder, self.port))
        self.url = self._server.url
        self.port = int(self.url.rpartition(":")[2].split("/")[0])

    def stop(self) -> None:
        """As an operator does: it may write what it has."""
        if self._frozen:
            self.thaw()
        self._life.close()

    def kill(self) -> None:
        self._server.process.kill()
        self._frozen = False
        self._life.close()

    def freeze(self) -> None:
        """Its port still takes connections, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def empty(self) -> None:
        """It lost everything, its scripts too."""
        with self.client() as client:
            client.flushall()
            client.script_flush()

    def limit_files(self, size: int | None) -> None:
        """No file of the server may grow beyond `size` bytes: what a full disk is to it. None: as large as it likes."""
        most = psutil.RLIM_INFINITY if size is None else size
        psutil.Process(self.pid).rlimit(psutil.RLIMIT_FSIZE, (most, psutil.RLIM_INFINITY))

    def client(self) -> contextlib.closing[Any]:
        return contextlib.closing(redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=10))

    @property
    def pid(self) -> int:
        return self._server.process.pid
