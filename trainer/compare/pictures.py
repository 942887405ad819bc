"""The pictures of a comparison, as PNG."""

import io
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from adapters.names import BASE
from service import palette
from trainer.compare.results import Results
from trainer.compare.students import Student
from trainer.evaluation.overlap import ALARM
from trainer.plan.comparison import AGES, EXPERTS, PILOT

_SMOOTH = 10
"""Steps whose cosines are one point: those of single steps spread more than they differ."""
PHASES = {"rlvr": "RLVR", "opd": "distillation"}
STUDENTS = {
    PILOT: ("pilot: one expert, students that were prepared at different temperatures", "temperature"),
    AGES: ("teachers of growing age (not in the paper): what a fresh student takes", "steps of the teacher"),
}
"""Systems of students that have one teacher each: a title, and what differs between students of one teacher."""
NAMES = {EXPERTS: "experts alone", "copd2": "CoPD, two branches", "copd3": "CoPD"}


def pictures(results: Results) -> dict[str, bytes]:
    """The pictures that there is something to draw of, by title."""
    import matplotlib

    matplotlib.use("Agg")  # the commands run where there is no display
    from matplotlib import pyplot
    from matplotlib.rcsetup import cycler

    drawings: dict[str, tuple[bool, Callable[[Results, Any], None]]] = {
        "Means over the seeds": (bool(results.tables), _draw_means),
        "Branches while they learn": (bool(results.measured.series), _draw_series),
        "What a phase changes": (bool(results.phase_changes), _draw_phases),
        "Gradients of mixed RLVR": (bool(results.measured.pulls), _draw_pulls),
        "RLVR and distillation in a cycle": (bool(results.sweep), _draw_sweep),
    }
    for system, students in results.students.items():
        title = STUDENTS[system][0]
        drawings[title.capitalize()] = True, lambda _, figure, students=students: _draw_students(students, figure)
    images: dict[str, bytes] = {}
    for title, (has_data, draw) in drawings.items():
        if has_data:
            # Lines that name no colour, and C0, C1, ..., take those of branches.
            with pyplot.rc_context({"axes.prop_cycle": cycler(color=palette.COLOURS)}):
                figure = pyplot.figure(figsize=(12, 4), constrained_layout=True)
                draw(results, figure)
                file = io.BytesIO()
                figure.savefig(file, dpi=110, format="png")
            pyplot.close(figure)  # pyplot holds figures for ever otherwise
            images[title] = file.getvalue()
    return images


def _draw_means(results: Results, figure: Any) -> None:
    """Every line with its interval, of the tables that set systems beside the base."""
    standings = results.standings
    drawn = [table for table in results.tables if table.lines[0].system == BASE] or results.tables[:1]
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    for panel, table in zip(panels, drawn, strict=True):
        lines = table.lines[::-1]  # an axis counts upwards, a table downwards
        for number, way in enumerate(standings.ways):
            means = [standings.accuracy(line, table.exams, way, table.seeds) for line in lines]
            panel.errorbar(
                [100 * mean.mean for mean in means],
                np.arange(len(lines)) + 0.15 * number,  # ways beside each other, not upon each other
                xerr=[100 * (mean.half_width or 0) for mean in means],
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
    """The mean over the seeds at each step, and their range."""
    titles = {
        "overlap": "overlap of branches",
        "shared": "shared probability",
        "kl": "symmetric KL, nats a token",
        "from_base": "overlap with the base",
    }
    measured = {field: title for field, title in titles.items() if _is_measured(results, field)}
    panels = figure.subplots(1, len(measured))
    for panel, (field, title) in zip(panels, measured.items(), strict=True):
        values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in results.measured.series:
            if (value := getattr(point, field)) is not None:
                values[point.system][point.step].append(value)
        for system, by_step in values.items():
            steps = sorted(by_step)
            seeds = [by_step[step] for step in steps]
            means = [float(np.mean(values)) for values in seeds]
            (line,) = panel.plot(steps, means, marker=".", label=NAMES.get(system, system))
            panel.fill_between(steps, list(map(min, seeds)), list(map(max, seeds)), alpha=0.15, color=line.get_color())
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.legend(fontsize=8)
        if field == "shared":
            # Below it branches have drifted apart.
            panel.axhline(ALARM, color=palette.NEUTRAL, linewidth=0.8, linestyle=":")


def _is_measured(results: Results, field: str) -> bool:
    return any(getattr(point, field) is not None for point in results.measured.series)


def _draw_phases(results: Results, figure: Any) -> None:
    """Left of zero in RLVR and right of it in distillation is the saw that the paper describes."""
    titles = {
        "overlap": "change of overlap in one phase",
        "shared": "change of shared probability in one phase",
        "kl": "change of symmetric KL in one phase, nats a token",
    }
    measured = dict.fromkeys(change.quantity for change in results.phase_changes)
    panels = figure.subplots(1, len(measured), sharey=True)
    for panel, (quantity, title) in zip(panels, ((name, titles[name]) for name in measured), strict=True):
        changes = [change for change in results.phase_changes if change.quantity == quantity][::-1]
        panel.barh(
            [f"{NAMES.get(change.system, change.system)}, {PHASES[change.phase]}" for change in changes],
            [change.change.mean for change in changes],
            xerr=[change.change.half_width or 0 for change in changes],
            color=[palette.PHASES[change.phase] for change in changes],
            capsize=3,
        )
        panel.axvline(0, color=palette.NEUTRAL, linewidth=0.8)
        panel.locator_params(axis="x", nbins=4)  # thousandths are wide
        panel.set_title(title, fontsize=10)


def _draw_pulls(results: Results, figure: Any) -> None:
    """Means over the seeds, over `_SMOOTH` steps."""
    cosines: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for pull in results.measured.pulls:
        cosines[pull.system][pull.pair][(pull.step - 1) // _SMOOTH].append(pull.cosine)
    panels = figure.subplots(1, len(cosines), squeeze=False)[0]
    for panel, (system, by_pair) in zip(panels, cosines.items(), strict=True):
        for pair, by_bin in by_pair.items():
            bins = sorted(by_bin)
            middles = [(number + 0.5) * _SMOOTH for number in bins]
            panel.plot(middles, [float(np.mean(by_bin[number])) for number in bins], label=pair)
        panel.axhline(0, color=palette.NEUTRAL, linewidth=0.8, linestyle=":")
        panel.set_title(f"{system}: cosine of the capabilities' gradients", fontsize=10)
        panel.set_xlabel("step")
        panel.legend(fontsize=8)


def _draw_students(students: Sequence[Student], figure: Any) -> None:
    """A point for each student. Those of one seed and expert have one colour: they are one run."""
    xs = {"overlap": "overlap with the teacher before", "shared": "shared probability before"}
    measured = [name for name in xs if any(getattr(student, name) is not None for student in students)]
    panels = figure.subplots(1, 2 * len(measured), squeeze=False)[0]
    ys = {"gain": "gain, points", "absorbed": "gain, % of the teacher's lead"}
    runs = dict.fromkeys((student.seed, student.capability) for student in students)
    for panel, (measure, outcome) in zip(panels, product(measured, ys), strict=True):
        for number, run in enumerate(runs):
            points = [
                (getattr(student, measure), 100 * value)
                for student in students
                if (student.seed, student.capability) == run and (value := getattr(student, outcome)) is not None
            ]
            panel.scatter(*zip(*points, strict=True) if points else ((), ()), color=f"C{number % 10}")
        panel.set_xlabel(xs[measure], fontsize=9)
        panel.set_title(ys[outcome], fontsize=10)
        panel.locator_params(axis="x", nbins=4)
    labels = [f"{capability}, seed {seed}" for seed, capability in runs]
    figure.legend(panels[0].collections, labels, loc="outside right upper", fontsize=8)


def _draw_sweep(results: Results, figure: Any) -> None:
    panel = figure.subplots(1, 1)
    panel.errorbar(
        [f"{share.rlvr_steps} : {share.opd_steps}" for share in results.sweep],
        [100 * share.accuracy.mean for share in results.sweep],
        yerr=[100 * (share.accuracy.half_width or 0) for share in results.sweep],
        marker="o",
        capsize=3,
    )
    panel.set_xlabel("RLVR : distillation steps in a cycle")
    panel.set_title("mean accuracy of the merge, %", fontsize=10)
