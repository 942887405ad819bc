"""What happens to a store from outside: files that rot on its disk, and uploads that nobody should send.

A run must survive each of them. A revision that is damaged is the head of its branch, which is made again. Left out:
older ones that are needed; the job that needs one fails for good, and names it.
"""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import load, save

from adapters.manifest import CONFIG, MANIFEST, WEIGHTS

MADE_UP_TOKEN = 9999999999999999
REFUSED = frozenset({400, 409, 413, 422})


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # of a number: the file still loads
    file.write_bytes(data)


def tear(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


DAMAGE: Mapping[str, Callable[[Path], None]] = {
    "flip a bit": lambda revision: flip_a_bit(revision / WEIGHTS),
    "tear": lambda revision: tear(revision / WEIGHTS),
    "lose": lambda revision: (revision / CONFIG).unlink(),
    "tear the manifest": lambda revision: tear(revision / MANIFEST),
}
"""By its name, what is done to the folder of a revision."""


def filled(weights: bytes, value: float, count: int | None) -> bytes:
    """The first numbers of every tensor, or all of them, are this value."""
    tensors = load(weights)
    for tensor in tensors.values():
        tensor.reshape(-1)[:count] = np.float32(value)
    return save(tensors, {"format": "pt"})


HOSTILE: Mapping[str, tuple[Callable[[bytes], bytes], dict[str, str]]] = {
    "not a number": (lambda weights: filled(weights, np.nan, 1), {}),
    "enormous": (lambda weights: filled(weights, 1e30, None), {}),
    "a pickle": (pickle.dumps, {}),
    "torn": (lambda weights: weights[: len(weights) // 2], {}),
    "made-up token": (lambda weights: weights, {"token": str(MADE_UP_TOKEN)}),
}
"""By its name, what becomes of a good adapter's weights, and the fields beside them."""


def upload(url: str, kind: str, source: Path, branch: str, revision: int) -> httpx.Response:
    """As the next revision of a branch, made of the adapter in a folder."""
    spoil, fields = HOSTILE[kind]
    files = {
        WEIGHTS: (WEIGHTS, spoil((source / WEIGHTS).read_bytes())),
        CONFIG: (CONFIG, (source / CONFIG).read_bytes()),
    }
    data = {"parent": str(revision - 1), **fields}
    return httpx.put(f"{url}/adapters/{branch}/{revision}", data=data, files=files, timeout=60)
