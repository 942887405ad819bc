"""A run as a picture: rewards of its steps, overlap and KL of its branches at the phase ends, accuracy on the way."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.names import BASE, Ref
from trainer.reporting.events import Event, overlaps_of

_SMOOTH = 5  # steps


def curves(events: Sequence[Event], path: Path) -> Path:
    """Drawn into the file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    _draw_rewards(panels[0], events)
    _draw_pairs(panels[1], events, 0, "overlap of the likeliest tokens")
    _draw_pairs(panels[2], events, 1, "symmetric KL, nats a token")
    if panels[0].lines:
        panels[0].legend(fontsize=7)
    if panels[1].lines:  # both have the same pairs, more than fit between the lines
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _draw_rewards(panel: Any, events: Sequence[Event]) -> None:
    rewards: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        if event["kind"] == "step" and (reward := event["metrics"].get("native/reward")) is not None:
            rewards[event["branch"]][event["step"]] = reward
    for branch, by_step in rewards.items():
        steps = sorted(by_step)
        values = np.array([by_step[step] for step in steps])
        (line,) = panel.plot(steps, values, alpha=0.25)
        panel.plot(steps, _smooth(values), color=line.get_color(), label=branch)
    _finish(panel, "reward of a step's rollouts")


def _draw_pairs(panel: Any, events: Sequence[Event], which: int, title: str) -> None:
    """Mean over capabilities and both directions of each pair; the base's dashed."""
    from matplotlib import colormaps

    series: dict[str, dict[int, float]] = defaultdict(dict)
    for event, found in overlaps_of(events):
        names = list(found.branches)
        for number, a in enumerate(names):
            for b in names[number + 1 :]:
                both = [found.at(x, y, c)[which] for x, y in ((a, b), (b, a)) for c in found.capabilities]
                series[" - ".join(_branch(name) for name in (a, b))][event["step"]] = float(np.mean(both))
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(series)))  # as many as there are pairs
    for (pair, by_step), colour in zip(series.items(), colours, strict=True):
        steps = sorted(by_step)
        style = "--" if pair.endswith(BASE) else "-"
        panel.plot(steps, [by_step[step] for step in steps], style, color=colour, marker=".", label=pair)
    _finish(panel, title)


def _branch(name: str) -> str:
    return Ref.parse(name).branch


def _smooth(values: Any) -> Any:
    """The mean of the last few."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - _SMOOTH, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _finish(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
