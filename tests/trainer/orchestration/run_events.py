"""Events of a small run, as a service keeps them."""

import json
from pathlib import Path
from typing import Any


def step(branch: str, number: int, reward: float, *teachers: str) -> dict[str, Any]:
    metrics = {"native/reward": reward, "native/length": 20.0, "native/entropy": 0.5, "grad_norm": 0.1}
    metrics |= {f"{teacher.partition('@')[0]}/length": 10.0 for teacher in teachers}
    return {
        "kind": "step", "branch": branch, "step": number, "phase": "opd" if teachers else "rlvr",
        "teachers": list(teachers), "skipped": None, "metrics": metrics,
        "seconds": {"gather": 1.0, "learn": 0.5, "publish": 0.25}, "warnings": [],
    }  # fmt: skip


def overlap(number: int, *branches: str, value: float = 0.95) -> dict[str, Any]:
    names, capabilities = [*branches, "base"], ["text", "image"]
    size = range(len(names))
    overlaps = [[[1.0 if a == b else value - 0.01 * abs(a - b)] * 2 for b in size] for a in size]
    shares = [[[1.0 if a == b else 0.99 - 0.01 * abs(a - b)] * 2 for b in size] for a in size]
    apart = [[[0.0 if a == b else 0.02] * 2 for b in size] for a in size]
    return {
        "kind": "overlap", "phase": "opd", "step": number, "branches": names, "capabilities": capabilities,
        "top_k": 10, "prompts": 4, "overlap": overlaps, "kl": apart, "shared": shares, "alarms": [],
    }  # fmt: skip


def accuracy(number: int, model: str, value: float) -> dict[str, Any]:
    row = {"model": model, "exam": "text", "way": "greedy", "accuracy": value, "half_width": 0.1}
    return {"kind": "accuracy", "phase": "opd", "step": number, "rows": [row, row | {"exam": "mean"}]}


def run(state: str) -> dict[str, Any]:
    return {"kind": "run", "state": state, "name": "small", "branches": {"text": 3, "image": 3}}


EVENTS = [
    run("running"),
    step("text", 1, 0.5),
    step("image", 1, 0.25),
    step("text", 2, 0.75),
    step("image", 2, 0.5),
    step("image", 3, 0.5, "text@2"),
    step("text", 3, 0.75, "image@2"),
    overlap(3, "text@3", "image@3"),
    accuracy(3, "text@3", 0.625),
    {"kind": "rhythm", "phase": "opd", "step": 3, "cycle": 1, "rlvr_steps": 1, "opd_steps": 2, "lowest": 0.88},
    run("finished"),
]


def write(path: Path, events: list[dict[str, Any]] = EVENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path
