"""Two machines on one: two network namespaces with a cable between them that can be pulled.

A namespace here has no name: it is there for as long as a process or an open file is in it, so nothing is left behind,
however a test ends. It holds for the calling thread and for what that starts. Needs Linux, root and iproute2.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass

from tests.faults.queue_process import QueueProcess

NEAR_ADDRESS, FAR_ADDRESS = "10.213.7.1", "10.213.7.2"
_NEAR, _FAR = "near0", "far0"
_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


@dataclass(frozen=True, slots=True)
class Machines:
    """Open files of the two namespaces."""

    near: int
    far: int

    def pull_cable(self) -> None:
        """At the far end: packets vanish, and nobody is told."""
        with inside(self.far):
            _ip("link", "set", _FAR, "down")

    def plug_in(self) -> None:
        with inside(self.far):
            _ip("link", "set", _FAR, "up")


def missing() -> str | None:
    """Why there can be no two machines here."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "no `ip`: apt-get install iproute2"
    try:
        with two_machines():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {error}"


@contextlib.contextmanager
def two_machines() -> Generator[Machines]:
    with _new_namespace() as near, _new_namespace() as far:
        with inside(near):
            _ip("link", "add", _NEAR, "type", "veth", "peer", "name", _FAR)
            _ip("link", "set", _FAR, "netns", f"/proc/{os.getpid()}/fd/{far}")
        for namespace, link, address in ((near, _NEAR, NEAR_ADDRESS), (far, _FAR, FAR_ADDRESS)):
            with inside(namespace):
                _ip("address", "add", f"{address}/24", "dev", link)
                for name in ("lo", link):
                    _ip("link", "set", name, "up")
        yield Machines(near, far)


@contextlib.contextmanager
def loopback() -> Generator[int]:
    """A machine without a cable, whose ports are all free."""
    with _new_namespace() as namespace:
        with inside(namespace):
            _ip("link", "set", "lo", "up")
        yield namespace


@contextlib.contextmanager
def inside(namespace: int) -> Generator[None]:
    """This thread is there, and so is what it starts."""
    with _opened(_OWN) as before:
        _set_namespace(namespace)
        try:
            yield
        finally:
            _set_namespace(before)


def open_to_others(server: QueueProcess, address: str) -> None:
    """It listens at `address` too, without a password. Call it inside its namespace."""
    with server.client() as client:
        client.config_set("protected-mode", "no")
        client.config_set("bind", f"127.0.0.1 {address}")


@contextlib.contextmanager
def _new_namespace() -> Generator[int]:
    with _opened(_OWN) as before:
        _check(_libc().unshare(_CLONE_NEWNET))
        try:
            namespace = os.open(_OWN, os.O_RDONLY)
        finally:
            _set_namespace(before)
    try:
        yield namespace
    finally:
        os.close(namespace)


@contextlib.contextmanager
def _opened(path: str) -> Generator[int]:
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _set_namespace(namespace: int) -> None:
    _check(_libc().setns(namespace, _CLONE_NEWNET))


def _check(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
