"""Accuracies: as JSON, as lines for programs, as a table for people.

Left out: what was measured (`trainer.evaluation.exams`).
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from trainer.evaluation.exams import ExamResult, MeanResult
from trainer.evaluation.intervals import Interval
from trainer.evaluation.ways import KINDS, kind_of
from trainer.recipe import Recipe
from trainer.reporting.percent import percent

HEADS = (
    "exam", "way", "model", "accuracy", "low", "high", "gain", "gain low", "gain high", "blind", "questions",
    "unscorable", "cut off", "tokens",
)  # fmt: skip
_WIDTH = 140
"""Columns of a table that goes to a file: three capabilities in two ways, and their means."""


def as_json(recipe: Recipe, results: Sequence[ExamResult], means: Sequence[MeanResult]) -> dict[str, Any]:
    def row(result: ExamResult | MeanResult) -> dict[str, Any]:
        return asdict(result) | {"accuracy": ends(result.accuracy), "gain": ends(result.gain)}

    def ends(interval: Interval) -> dict[str, float | None]:
        mean = None if math.isnan(interval.mean) else interval.mean  # JSON knows no NaN
        return {"mean": mean, "low": interval.low, "high": interval.high}

    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "results": [row(result) for result in results],
        "mean": [row(mean) for mean in means],
    }


def lines(results: Sequence[ExamResult], means: Sequence[MeanResult]) -> Iterator[tuple[str, ...]]:
    """For programs: a line for each result, shares as numbers from 0 to 1."""
    yield HEADS
    for result in results:
        yield (
            result.exam, result.way, result.model, *_accuracy_cells(result.accuracy), *_cells(result.gain),
            _number(result.blind), str(result.questions), _number(result.unscorable), _number(result.cut_off),
            f"{result.tokens:.1f}",
        )  # fmt: skip
    for mean in means:
        yield (mean.name, mean.way, mean.model, *_accuracy_cells(mean.accuracy), *_cells(mean.gain), *["-"] * 5)


def _accuracy_cells(interval: Interval) -> tuple[str, str, str]:
    # Of few questions an interval may reach beyond what a share can be. A gain has no such ends.
    low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (interval.low, interval.high))
    return _number(interval.mean), _number(low), _number(high)


def _cells(interval: Interval) -> tuple[str, str, str]:
    return _number(interval.mean), _number(interval.low), _number(interval.high)


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def show(title: str, results: Sequence[ExamResult], means: Sequence[MeanResult]) -> None:
    """For people: models downwards, exams across, in percent; the gain over the first model behind each accuracy."""
    # The means come last, as one more exam.
    rows = [(result.exam, result) for result in results] + [(mean.name, mean) for mean in means]
    models = list(dict.fromkeys(result.model for result in results))
    columns = list(dict.fromkeys((exam, row.way) for exam, row in rows))
    cells = {
        (row.model, exam, row.way): _percent(row.accuracy)
        + ("" if row.model == models[0] else f"\n{_percent(row.gain, '+')}")
        for exam, row in rows
    }
    blind = {(result.exam, result.way): result.blind for result in results}
    # In a file nobody can make the window wider, and rich would take 80 columns.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    table = _table(title, models, columns, cells, blind)
    if console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width:
        console.print(table)
        return
    # A narrow window: a table for each kind of answers.
    for kind in KINDS:
        if some := [column for column in columns if kind_of(column[1]) == kind]:
            console.print(_table(title, models, some, cells, blind))


def _table(
    title: str,
    models: Sequence[str],
    columns: Sequence[tuple[str, str]],
    cells: Mapping[tuple[str, str, str], str],
    blind: Mapping[tuple[str, str], float | None],
) -> Table:
    table = Table("accuracy in %", *(f"{exam}\n{way}" for exam, way in columns), title=title, box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for model in models:
        table.add_row(model, *(cells[model, *column] for column in columns))
    if any(level is not None for level in blind.values()):
        levels = (blind.get(column) for column in columns)
        table.add_row("looks at nothing", *("-" if level is None else percent(level) for level in levels))
    return table


def _percent(interval: Interval, sign: str = "-") -> str:
    return (
        "not judged" if math.isnan(interval.mean) else percent(interval.mean, interval.half_width, sign=sign, pm=" +-")
    )
