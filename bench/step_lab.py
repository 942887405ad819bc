"""What both sides of `coevo bench step` share: prompts, a base that never ends, a reward, a stop-watch."""

import inspect
import json
import random
import statistics
import time
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from service.media import encode_image
from service.processes import cpu_seconds
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


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of another base than the miniature: questions in words, the same of every such base."""

    base: str
    prompts: int
    """In a step; each has `GROUP` completions."""
    tokens: int
    """Of each completion."""
    modules: tuple[str, ...]
    """Projections that the adapters have."""

    @classmethod
    def read(cls, text: str) -> "Case":
        values = json.loads(text)
        return cls(**values | {"modules": tuple(values["modules"])})


def noise(count: int) -> list[Prompt]:
    """Pictures that nobody has seen."""
    rng = np.random.default_rng(0)
    pictures = [encode_image(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(count)]
    return [make_prompt("noise", "21+red?", n, [picture]) for n, picture in enumerate(pictures)]


def questions(name: str, count: int) -> list[Prompt]:
    return list(prompts(name, label=name, split="train", size=count, seed=0).prompts)


def problems(count: int) -> list[Prompt]:
    """Sums in words, as long as those of schools: about 70 tokens of English, and what the chat template adds."""
    rng = random.Random(0)
    return [make_prompt("problems", problem(rng), str(number)) for number in range(count)]


def problem(rng: random.Random) -> str:
    name = rng.choice(("Natalia", "Amara", "Lucia", "Mei", "Ingrid", "Fatima"))
    picked, more, given, friends, pie = (rng.randint(*bounds) for bounds in ((20, 90),) * 2 + ((2, 9),) * 3)
    return (
        f"{name} picks {picked} apples in the morning and {more} more in the afternoon. She gives {given} of them to "
        f"each of her {friends} friends, and bakes the rest into pies, with {pie} apples in a pie. How many whole pies "
        "does she bake, and how many apples are left? Say how you get there."
    )


def completions(length: int, *, prompts: int = PROMPTS, ids: Sequence[int] = range(256)) -> list[list[int]]:
    """Random tokens for all prompts of a step; the miniature's are bytes."""
    return np.random.default_rng(1).choice(np.array(ids), (prompts * GROUP, length)).tolist()


def plain_ids(tokenizer: Any) -> list[int]:
    """Without marks: a mark of media stands for many tokens, and one that ends a turn ends an answer."""
    return sorted(set(range(len(tokenizer))) - set(tokenizer.added_tokens_decoder))


def checksum_bit(completion: str, answer: str) -> float:
    """A reward that differs within nearly every group."""
    return float(zlib.crc32((completion + answer).encode()) % 2)


def endless(folder: Path, base: Path) -> Path:
    """The base with an end token that it never says: all completions are as long as they may be."""
    from transformers import AutoTokenizer  # not at the top: a reward is loaded from here, within its time

    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).symlink_to(path)  # weights of a real base are gigabytes
    tokenizer = AutoTokenizer.from_pretrained(base)
    # The padding, or where that ends a turn as well, what stands for unknown text, which byte-level tokens never need.
    end = tokenizer.pad_token if tokenizer.pad_token != tokenizer.eos_token else tokenizer.unk_token
    _change(folder / "tokenizer_config.json", {"eos_token": end})
    _change(folder / "generation_config.json", {"eos_token_id": tokenizer.convert_tokens_to_ids(end)})
    return folder


def _change(path: Path, values: dict[str, Any]) -> None:
    changed = json.loads(path.read_text()) | values
    path.unlink()  # a link to the base's
    path.write_text(json.dumps(changed))


class Watch:
    """How long calls took, by name; calls of one name that overlap count once."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._began, self._cpu = time.perf_counter(), cpu_seconds()

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
        self._began, self._cpu = time.perf_counter(), cpu_seconds()

    def stop(self) -> Seconds:
        """Since the start; `rest` is when nothing watched was going on."""
        whole = time.perf_counter() - self._began
        every = [span for spans in self._spans.values() for span in spans]
        return {name: _covered(spans) for name, spans in self._spans.items()} | {
            "whole": whole,
            "rest": whole - _covered(every),
            "cpu": cpu_seconds() - self._cpu,
        }


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    seconds, done = 0.0, 0.0
    for began, ended in sorted(spans):
        seconds += max(0.0, ended - max(began, done))
        done = max(done, ended)
    return seconds


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
