"""Tasks of reasoning-gym as prompts: each entry is a row, and travels as JSON in the answer to who scores it.

Splits share no question: a hash of it says which split it belongs to, whatever seed it comes from. Seeds alone would
not do: entry i of seed s is entry i - 1 of seed s + 1.

Left out: composite data sets (name each task as a capability), and the curricula of reasoning-gym.
"""

import difflib
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from service.media import Limits
from trainer.data.datasets import PromptSet, scan
from trainer.data.records import Records, Row
from trainer.data.rows import Reading
from trainer.recipe import ReasoningGymData

_HELD_OUT_OF = 8
"""A question in so many is for validation: enough for an exam, and a small task keeps most to train on."""
_DRAWN = 64
"""Entries that are drawn for each that is wanted, at most: tasks of few different questions have an end."""
_SEEDS = 2**31
_CHECKED = 4
"""Entries whose way through JSON is tried: a task has one form for all."""


def prompts(data: ReasoningGymData, *, label: str, seed: int, limits: Limits) -> PromptSet:
    """Different questions of a task, `data.size` where it has so many; `label` is what the recipe calls it."""
    where = f"capabilities.{label}.data"
    task = _task(data, where, seed)
    rows = list(_rows(task, data, where))
    if not rows:
        raise UserError(f"{where}: no question of {data.name} falls to the split {data.split}; take another task")
    columns = {"prompt": "question", "answer": "answer"}
    reading = Reading(label, columns, data.system, data.suffix or None, None, 1.0, limits)
    name = f"reasoning-gym {data.name}"
    return scan(name, [Records(name, rows, tuple(columns.values()), Path())], reading)


def _task(data: ReasoningGymData, where: str, seed: int) -> Any:
    try:
        gym = importlib.import_module("reasoning_gym")
        names = importlib.import_module("reasoning_gym.factory").DATASETS
    except ModuleNotFoundError:
        raise UserError(f"{where}: reasoning-gym is not installed; pip install 'coevo[reasoning-gym]'") from None
    if data.name not in names or data.name == "composite":
        near = difflib.get_close_matches(data.name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names))}"
        raise UserError(f"{where}.name: reasoning-gym has no task {data.name!r}; {hint}")
    # Far apart for neighbouring seeds of a run, which would share all questions but the first.
    derived = int.from_bytes(hashlib.sha256(f"{data.name} {seed}".encode()).digest()[:8], "big") % _SEEDS
    settings = {"seed": derived if data.seed is None else data.seed, "size": data.size * _DRAWN} | data.config
    try:
        return gym.create_dataset(data.name, **settings)
    except Exception as error:  # assertions of each task's own
        message = " ".join(str(error).split())
        raise UserError(f"{where}.config: {data.name} refuses it: {message or type(error).__name__}") from None


def _rows(task: Any, data: ReasoningGymData, where: str) -> Iterator[Row]:
    questions: set[str] = set()
    for index in range(len(task)):
        if len(questions) == data.size:
            return
        try:
            entry = task[index]
            answer = json.dumps(entry, ensure_ascii=False)
            is_same = len(questions) >= _CHECKED or _scores_alike(task, entry, json.loads(answer))
        except Exception as error:
            raise UserError(f"{where}.name: {data.name} cannot be asked ({error}); take another task") from None
        if not is_same:
            raise UserError(f"{where}.name: {data.name} scores its entries otherwise after JSON; take another task")
        question = str(entry["question"])
        digest = hashlib.sha256(question.encode()).digest()
        split = "validation" if digest[0] % _HELD_OUT_OF == 0 else "train"
        if question not in questions and split == data.split:
            questions.add(question)
            yield {"question": question, "answer": answer}


def _scores_alike(task: Any, entry: Any, copy: Any) -> bool:
    # Some tasks have no answer to show, only a rule for what is right.
    right = entry["answer"]
    return right is None or task.score_answer(right, entry) == task.score_answer(right, copy)
