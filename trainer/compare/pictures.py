"""The pictures of a comparison, as PNG."""

import io
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from trainer.compare.results import Results
from trainer.plan.comparison import EXPERTS

_SMOOTH = 10  # steps
NAMES = {EXPERTS: "experts alone", "copd2": "CoPD, two branches", "copd3": "CoPD"}


def pictures(results: Results) -> dict[str, bytes]:
    """By title; those that there is something to draw of."""
    found = {
        "Means over the seeds": (bool(results.tables), _draw_means),
        "Branches while they learn": (bool(results.series), _draw_series),
        "Gradients of mixed RLVR": (bool(results.pulls), _draw_pulls),
        "Pilot: what a fresh student takes from a teacher": (bool(results.students), _draw_pilot),
        "RLVR and distillation in a cycle": (bool(results.sweep), _draw_sweep),
    }
    return {title: _png(draw, results) for title, (is_there, draw) in found.items() if is_there}


def _png(draw: Callable[[Results, Any], None], results: Results) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(12, 4), constrained_layout=True)
    draw(results, figure)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
    return file.getvalue()


def _draw_means(results: Results, figure: Any) -> None:
    """Every line of the tables with its interval."""
    panels = figure.subplots(1, len(results.tables), squeeze=False)[0]
    for panel, table in zip(panels, results.tables, strict=True):
        lines = table.lines[::-1]
        for number, way in enumerate(results.found.ways):
            values = [results.found.accuracy(line, table.exams, way) for line in lines]
            places = np.arange(len(lines)) + 0.15 * number
            panel.errorbar(
                [100 * one.mean for one in values],
                places,
                xerr=[100 * (one.half_width or 0) for one in values],
                fmt="os"[number % 2],
                capsize=2,
                markersize=4,
                label=way,
            )
        panel.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
        panel.set_title(textwrap.fill(table.title, 24), fontsize=10)
        panel.set_xlabel("mean accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)


def _draw_series(results: Results, figure: Any) -> None:
    panels = figure.subplots(1, 3)
    titles = ("overlap of branches", "symmetric KL of branches, nats a token", "overlap with the base")
    for panel, field, title in zip(panels, ("overlap", "kl", "from_base"), titles, strict=True):
        for system, steps, means, low, high in _bands(results, field):
            (line,) = panel.plot(steps, means, marker=".", label=NAMES.get(system, system))
            panel.fill_between(steps, low, high, alpha=0.15, color=line.get_color())
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.legend(fontsize=8)
    panels[0].axhline(0.9, color="grey", linewidth=0.8, linestyle=":")


def _bands(results: Results, field: str) -> Iterator[tuple[str, list[int], list[float], list[float], list[float]]]:
    """Of each system the mean over seeds at each step, and its range."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in results.series:
        values[point.system][point.step].append(getattr(point, field))
    for system, by_step in values.items():
        steps = sorted(by_step)
        own = [by_step[step] for step in steps]
        yield system, steps, [float(np.mean(one)) for one in own], [min(one) for one in own], [max(one) for one in own]


def _draw_pulls(results: Results, figure: Any) -> None:
    """Means over the seeds, over `_SMOOTH` steps."""
    systems = list(dict.fromkeys(one.system for one in results.pulls))
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    for panel, system in zip(panels, systems, strict=True):
        for pair in dict.fromkeys(one.pair for one in results.pulls if one.system == system):
            by_bin: dict[int, list[float]] = defaultdict(list)
            for one in results.pulls:
                if (one.system, one.pair) == (system, pair):
                    by_bin[(one.step - 1) // _SMOOTH].append(one.cosine)
            bins = sorted(by_bin)
            panel.plot(
                [(one + 0.5) * _SMOOTH for one in bins], [float(np.mean(by_bin[one])) for one in bins], label=pair
            )
        panel.axhline(0, color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(f"{system}: cosine of the capabilities' gradients", fontsize=10)
        panel.set_xlabel("step")
        panel.legend(fontsize=8)


def _draw_pilot(results: Results, figure: Any) -> None:
    panels = figure.subplots(1, 2)
    for capability in dict.fromkeys(one.capability for one in results.students):
        own = [one for one in results.students if one.capability == capability]
        panels[0].scatter([one.overlap for one in own], [100 * one.gain for one in own], label=capability)
        kept = [one for one in own if one.absorbed is not None]
        panels[1].scatter([one.overlap for one in kept], [100 * (one.absorbed or 0) for one in kept], label=capability)
    for panel, title in zip(panels, ("gain, points", "gain, % of the teacher's lead"), strict=True):
        panel.set_xlabel("overlap of student and teacher at the start")
        panel.set_title(title, fontsize=10)
        panel.legend(fontsize=8)


def _draw_sweep(results: Results, figure: Any) -> None:
    panel = figure.subplots(1, 1)
    shares = results.sweep
    panel.errorbar(
        [f"{one.rlvr_steps} : {one.opd_steps}" for one in shares],
        [100 * one.accuracy.mean for one in shares],
        yerr=[100 * (one.accuracy.half_width or 0) for one in shares],
        marker="o",
        capsize=3,
    )
    panel.set_xlabel("RLVR : distillation steps in a cycle")
    panel.set_title("mean accuracy of the merge, %", fontsize=10)
