"""What both sides of `coevo bench step` share: prompts, a base that never ends, a reward, a stop-watch."""

import inspect
import json
import shutil
import statistics
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from adapters.base import locate
from service.media import encode_image
from trainer.data.generated import prompts
from trainer.data.prompts import make_prompt
from trainer.parts import Prompt

PROMPTS, GROUP = 8, 8
RANK, ALPHA, LR = 16, 32, 1e-5
SIDE = 512
"""256 image tokens."""
LONG, SHORT = 64, 48
"""Most tokens of a completion: after noise, and after a question."""
BRANCHES = ("text", "image", "video")

Seconds = dict[str, float]
"""The time of each part of one step."""


def noise(count: int) -> list[Prompt]:
    """Pictures that nobody has seen."""
    rng = np.random.default_rng(0)
    pictures = [encode_image(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(count)]
    return [make_prompt("noise", "21+red?", n, [picture]) for n, picture in enumerate(pictures)]


def questions(name: str, count: int) -> list[Prompt]:
    return list(prompts(name, label=name, split="train", size=count, seed=0).prompts)


def completions(length: int) -> list[list[int]]:
    """Random bytes, for all prompts of a step."""
    return np.random.default_rng(1).integers(0, 256, (PROMPTS * GROUP, length)).tolist()


def checksum_bit(completion: str, answer: str) -> float:
    """A reward that differs within nearly every group."""
    return float(zlib.crc32((completion + answer).encode()) % 2)


def endless(folder: Path) -> Path:
    """The miniature with an end token that it never says: all completions are as long as they may be."""
    shutil.copytree(locate("miniature"), folder)
    _change(folder / "tokenizer_config.json", lambda config: config | {"eos_token": config["pad_token"]})
    _change(folder / "generation_config.json", lambda config: config | {"eos_token_id": config["pad_token_id"]})
    return folder


def _change(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


class Watch:
    """How long calls took, by name; calls of one name that overlap count once."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._began, self._cpu = time.perf_counter(), _cpu()

    def on(self, owner: Any, attribute: str, name: str) -> None:
        function = getattr(owner, attribute)

        @wraps(function)
        async def slow(*arguments: Any, **named: Any) -> Any:
            with self.during(name):
                return await function(*arguments, **named)

        @wraps(function)
        def fast(*arguments: Any, **named: Any) -> Any:
            with self.during(name):
                return function(*arguments, **named)

        setattr(owner, attribute, slow if inspect.iscoroutinefunction(function) else fast)

    @contextmanager
    def during(self, name: str) -> Generator[None]:
        began = time.perf_counter()
        yield
        self.add(name, began)

    def add(self, name: str, began: float) -> None:
        """It ends now."""
        self._spans[name].append((began, time.perf_counter()))

    def start(self) -> None:
        self._spans.clear()
        self._began, self._cpu = time.perf_counter(), _cpu()

    def stop(self) -> Seconds:
        """Since the start; `rest` is when nothing watched was going on."""
        whole = time.perf_counter() - self._began
        every = [span for spans in self._spans.values() for span in spans]
        return {name: _covered(spans) for name, spans in self._spans.items()} | {
            "whole": whole,
            "rest": whole - _covered(every),
            "cpu": _cpu() - self._cpu,
        }


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    seconds, done = 0.0, 0.0
    for began, ended in sorted(spans):
        seconds += max(0.0, ended - max(began, done))
        done = max(done, ended)
    return seconds


def _cpu() -> float:
    """Seconds that this process and those below it have computed."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(process.user + process.system for process in times)


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(seconds.get(name, 0.0) for seconds in rounds) for name in rounds[-1]}


def forget_peak() -> float:
    """The process's memory now, in MiB; its peak is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
