"""Accuracies told: as JSON, as lines for programs, as a table for people.

Left out: what was measured (`evaluate`).
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from trainer.evaluation.exams import ExamResult, MeanResult
from trainer.evaluation.intervals import Interval
from trainer.recipe import Recipe

HEADS = (
    "exam", "way", "model", "accuracy", "low", "high", "gain", "gain low", "gain high", "blind", "questions",
    "unscorable", "cut off", "tokens",
)  # fmt: skip
MEAN = "mean"
_WIDTH = 140  # in a file


def as_json(recipe: Recipe, found: Sequence[ExamResult], rows: Sequence[MeanResult]) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "results": [
            asdict(one) | {"accuracy": _interval(one.accuracy), "gain": _interval(one.gain)} for one in found
        ],
        "mean": [asdict(one) | {"accuracy": _interval(one.accuracy), "gain": _interval(one.gain)} for one in rows],
    }  # fmt: skip


def _interval(one: Interval) -> dict[str, float | None]:
    mean = None if math.isnan(one.mean) else one.mean
    return {"mean": mean, "low": one.low, "high": one.high}


def lines(found: Sequence[ExamResult], rows: Sequence[MeanResult]) -> Iterator[tuple[str, ...]]:
    """For programs: a line for each result, shares as numbers from 0 to 1."""
    yield HEADS
    for one in found:
        yield (
            one.exam, one.way, one.model, *_shares(one.accuracy), *_cells(one.gain), _number(one.blind),
            str(one.questions), _number(one.unscorable), _number(one.cut_off), f"{one.tokens:.1f}",
        )  # fmt: skip
    for row in rows:
        yield (MEAN, row.way, row.model, *_shares(row.accuracy), *_cells(row.gain), "-", "-", "-", "-", "-")


def _shares(one: Interval) -> tuple[str, str, str]:
    """Of few questions an interval may reach beyond what a share can be."""
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (one.low, one.high))
    return _number(one.mean), _number(low), _number(high)


def _cells(one: Interval) -> tuple[str, str, str]:
    return _number(one.mean), _number(one.low), _number(one.high)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def show(title: str, found: Sequence[ExamResult], rows: Sequence[MeanResult]) -> None:
    """For people: models downwards, exams across, in percent; the gain over the first model behind each accuracy."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys((one.exam, one.way) for one in found))
    means = list(dict.fromkeys(row.way for row in rows))
    models = list(dict.fromkeys(one.model for one in found))
    named = [((one.model, one.exam, one.way), one) for one in found]
    named_means = [((row.model, MEAN, row.way), row) for row in rows]
    cells = {
        key: _percent(one.accuracy) + ("" if one.model == models[0] else f"\n{_percent(one.gain, '+')}")
        for key, one in (*named, *named_means)
    }
    columns += [(MEAN, way) for way in means]
    blind = {(one.exam, one.way): one.blind for one in found}
    table = Table("accuracy in %", *(f"{exam}\n{way}" for exam, way in columns), title=title, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in models:
        table.add_row(model, *(cells[model, *column] for column in columns))
    if any(level is not None for level in blind.values()):
        levels = (blind.get(column) for column in columns)
        table.add_row("looks at nothing", *("-" if level is None else f"{100 * level:.1f}" for level in levels))
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


def _percent(one: Interval, sign: str = "-") -> str:
    if math.isnan(one.mean):
        return "not judged"
    half = "" if one.half_width is None else f" +-{100 * one.half_width:.1f}"
    return f"{100 * one.mean:{sign}.1f}{half}"
