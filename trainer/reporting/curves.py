"""A run as a picture: rewards of its steps; what its branches share at the phase ends, their overlap and KL."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.names import BASE, Ref
from service.palette import colours
from trainer.reporting.events import Event, overlaps_of

_SMOOTH = 5
"""Steps in a moving mean: a step has few prompts, and its reward is mostly which ones they were."""


def curves(events: Sequence[Event], path: Path) -> Path:
    """Draws them into the file, which is whole at every moment: a run draws it again after each cycle."""
    import matplotlib

    matplotlib.use("Agg")  # a run may be on a machine without a display
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(16, 3.6), constrained_layout=True)
    _draw_rewards(panels[0], events)
    _draw_pairs(panels[1], events, "overlap", "overlap of the likeliest tokens")
    _draw_pairs(panels[2], events, "shared", "shared probability")
    _draw_pairs(panels[3], events, "kl", "symmetric KL, nats a token")
    if panels[0].lines:
        panels[0].legend(fontsize=7)
    if panels[1].lines:  # all have the same pairs, more than fit between the lines
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    draft = path.with_name(f".{path.name}")  # with the name's end, which tells the format
    figure.savefig(draft, dpi=110)
    pyplot.close(figure)
    draft.replace(path)
    return path


def _colours(events: Sequence[Event]) -> dict[str, str]:
    """The colour of each branch, in the order of their plan: that of the page."""
    plans = [event["branches"] for event in events if event["kind"] == "run"]
    working = [event["branch"] for event in events if event["kind"] == "step"]
    compared = [Ref.parse(name).branch for _, overlaps in overlaps_of(events) for name in overlaps.branches]
    return colours(dict.fromkeys([*(name for plan in plans for name in plan), *working, *compared]))


def _draw_rewards(panel: Any, events: Sequence[Event]) -> None:
    rewards: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        if event["kind"] == "step" and (reward := event["metrics"].get("native/reward")) is not None:
            rewards[event["branch"]][event["step"]] = reward
    by_branch = _colours(events)
    for branch, by_step in rewards.items():
        steps = sorted(by_step)
        values = np.array([by_step[step] for step in steps])
        # The mean of the last few as a difference of sums; the first points have fewer.
        sums = np.cumsum(np.insert(values, 0, 0.0))
        ends = np.arange(1, len(values) + 1)
        begins = np.maximum(ends - _SMOOTH, 0)
        panel.plot(steps, values, color=by_branch[branch], alpha=0.25)
        panel.plot(steps, (sums[ends] - sums[begins]) / (ends - begins), color=by_branch[branch], label=branch)
    _finish(panel, "reward of a step's rollouts")


def _draw_pairs(panel: Any, events: Sequence[Event], measure: str, title: str) -> None:
    """Mean over capabilities and both directions of each pair, of a field of `Likeness`; the base's dashed.

    A line has the colour of the one branch and its points that of the other.
    """
    series: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for event, overlaps in overlaps_of(events):
        names = list(overlaps.branches)
        for number, a in enumerate(names):
            for b in names[number + 1 :]:
                likeness = [overlaps.at(x, y, c) for x, y in ((a, b), (b, a)) for c in overlaps.capabilities]
                values = [value for pair in likeness if (value := getattr(pair, measure)) is not None]
                if values:  # a run of before did not measure all of them
                    # By branch and not by revision: a pair is one line over all phase ends.
                    series[Ref.parse(a).branch, Ref.parse(b).branch][event["step"]] = float(np.mean(values))
    by_branch = _colours(events)
    for (a, b), by_step in series.items():
        steps = sorted(by_step)
        style = {"color": by_branch[a], "markerfacecolor": by_branch[b], "markeredgecolor": by_branch[b]}
        values = [by_step[step] for step in steps]
        panel.plot(steps, values, "--" if b == BASE else "-", marker="o", markersize=4, label=f"{a} - {b}", **style)
    _finish(panel, title)


def _finish(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("step")
