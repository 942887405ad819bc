"""How branches drift apart or stay together, and whether that is what teaching depends on: from a comparison's events.

    series    what branches share over the steps, their overlap and symmetric KL, of the experts and of CoPD
    phases    how these change in RLVR and in distillation: the paper says that overlap falls and recovers
    pulls     cosines between the gradients of a mixed branch's capabilities
    sweep     accuracy of the merge by the share of RLVR steps in a cycle

Events name branches; the plan says of which system, seed and capability a branch is.

Left out: accuracies of systems beside each other (`standings`), and what students take (`students`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal, get_args

import numpy as np

from adapters.names import BASE, Ref
from trainer.compare.standings import Line, Standings
from trainer.evaluation.intervals import Interval, interval
from trainer.loop import NATIVE
from trainer.plan.comparison import MERGED, ONE_TEACHER, sweep_shares
from trainer.plan.steps import Segment
from trainer.recipe import MethodConfig
from trainer.reporting.events import Event, overlaps_of
from trainer.update.update import COSINE

Branches = Mapping[str, Segment]
"""A segment of each branch, for what the plan knows of it."""


# ---- overlap over training ----


@dataclass(frozen=True, slots=True)
class DynamicsPoint:
    """Branches of one system and seed at one step, over all pairs that learn from each other, both ways."""

    system: str
    seed: int | None
    phase: str
    step: int
    overlap: float
    """Mean over pairs and capabilities."""
    lowest: float
    kl: float
    from_base: float
    """Mean overlap with the base."""
    shared: float | None = None
    """Mean shared probability, over the same pairs as overlap; None: a comparison of before did not measure it."""


def series(events: Sequence[Event], branches: Branches) -> list[DynamicsPoint]:
    points: list[DynamicsPoint] = []
    for event, overlaps in overlaps_of(events):
        names = [name for name in overlaps.branches if name != BASE]
        segment = branches.get(Ref.parse(names[0]).branch)
        # A seed may be trained already and not examined yet: then the plan of what is shown does not have it. Students
        # of one teacher are compared with it once, and teach nobody.
        if len(names) < 2 or segment is None or segment.system in ONE_TEACHER:
            continue
        capabilities = overlaps.capabilities
        # Both ways: an overlap is measured on what its student sampled, so it is not the same the other way.
        pairs = [overlaps.at(a, b, c) for a in names for b in names if a != b for c in capabilities]
        points.append(
            DynamicsPoint(
                segment.system,
                segment.seed,
                event["phase"],
                event["step"],
                fmean(pair.overlap for pair in pairs),
                min(pair.overlap for pair in pairs),
                fmean(pair.kl for pair in pairs),
                fmean(overlaps.at(name, BASE, c).overlap for name in names for c in capabilities),
                fmean(shares) if (shares := [pair.shared for pair in pairs if pair.shared is not None]) else None,
            )
        )
    return points


Quantity = Literal["overlap", "shared", "kl"]


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """How far a quantity goes in one phase, on the mean over a run's phases of that kind."""

    system: str
    phase: str
    quantity: Quantity
    change: Interval
    """Over seeds: phases of one run follow from each other."""


def phase_changes(points: Sequence[DynamicsPoint]) -> list[PhaseChange]:
    """The changes of the systems that have both phases."""
    runs: dict[tuple[str, int | None], list[DynamicsPoint]] = {}
    for point in points:
        runs.setdefault((point.system, point.seed), []).append(point)
    # By system, phase and quantity, a mean for each seed.
    means: dict[tuple[str, str, Quantity], list[float]] = {}
    for (system, _), run in runs.items():
        run.sort(key=lambda point: point.step)
        if len({point.phase for point in run}) < 2:
            continue
        for phase in dict.fromkeys(point.phase for point in run):
            # A point stands at the end of its phase; the one before it, at the beginning.
            ends = [(before, after) for before, after in pairwise(run) if after.phase == phase]
            for quantity in get_args(Quantity):
                values = [(getattr(before, quantity), getattr(after, quantity)) for before, after in ends]
                if changes := [b - a for a, b in values if a is not None and b is not None]:
                    means.setdefault((system, phase, quantity), []).append(fmean(changes))
    return [PhaseChange(*key, interval(np.array(by_seed)[:, None])) for key, by_seed in means.items()]


# ---- gradients of mixed RLVR ----


@dataclass(frozen=True, slots=True)
class Pull:
    """Two capabilities in one step of a mixed branch: 1, they pull the same way; below 0, against each other."""

    system: str
    seed: int | None
    step: int
    pair: str
    cosine: float


def pulls(events: Sequence[Event], branches: Branches) -> Iterator[Pull]:
    for event in events:
        if event["kind"] == "step" and (segment := branches.get(event["branch"])):
            for name, value in event["metrics"].items():
                if name.startswith(f"{NATIVE}/{COSINE}:"):
                    pair = " - ".join(name.split(":")[1:])  # cosine:text:image
                    yield Pull(segment.system, segment.seed, event["step"], pair, value)


# ---- sweep ----


@dataclass(frozen=True, slots=True)
class Share:
    """So many RLVR steps of a cycle."""

    rlvr_steps: int
    opd_steps: int
    accuracy: Interval


def sweep(standings: Standings, method: MethodConfig, exams: Sequence[str], way: str) -> list[Share]:
    """With CoPD itself in its place, of the seeds that all have; empty where no other share was tried."""
    steps = {name: share for name, share in sweep_shares(method).items() if name in standings.systems}
    if not steps:
        return []
    steps["copd3"] = (method.rlvr_steps, method.opd_steps)
    merges = {name: line for name in steps if standings.has(line := Line(name, name, MERGED))}
    # Seeds differ by more than shares do: a curve over different seeds would show the seeds.
    common = sorted(set.intersection(*(set(standings.seeds_of(line)) for line in merges.values())))
    if not common:
        return []
    shares = [Share(*steps[name], standings.accuracy(line, exams, way, common)) for name, line in merges.items()]
    return sorted(shares, key=lambda share: share.rlvr_steps)
