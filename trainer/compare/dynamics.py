"""How branches drift apart or stay together, and whether that is what teaching depends on: from a comparison's events.

    series    what branches share over the steps, their overlap and symmetric KL, of the experts and of CoPD
    phases    how these change in RLVR and in distillation: the paper says that overlap falls and recovers
    pulls     cosines between the gradients of a mixed branch's capabilities
    students  gain of students of one frozen expert against how alike they were at the start, with Pearson's r
    sweep     accuracy of the merge by the share of RLVR steps in a cycle

Events name branches; the plan says of which system, seed and capability a branch is.

Left out: accuracies of systems beside each other (`standings`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE, Ref
from trainer.compare.standings import Line, Standings
from trainer.evaluation.intervals import Interval, interval
from trainer.loop import NATIVE
from trainer.plan.comparison import EXPERTS, MERGED, PILOT, sweep_shares
from trainer.plan.steps import Segment, Teacher
from trainer.recipe import MethodConfig
from trainer.reporting.events import Event, overlaps_of
from trainer.update.update import COSINE

_RESAMPLED = 2000
"""Draws of the bootstrap. Its 2.5 % tails have 50 each: enough for the two digits that are shown."""
_FEWEST = 6
"""Experts that a bootstrap needs: of three there are ten different draws, and no tails."""
Floats = NDArray[np.float64]
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
        # A seed may be trained already and not examined yet: then the plan of what is shown does not have it.
        if len(names) < 2 or segment is None:
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


# ---- pilot ----


@dataclass(frozen=True, slots=True)
class Student:
    """A fresh branch that learnt from one checkpoint of one expert."""

    seed: int
    capability: str
    age: int
    """The steps that its teacher had made."""
    overlap: float
    """The overlap of the base, which the student began as, with the teacher."""
    gain: float
    absorbed: float | None
    """The gain as a share of what the teacher was ahead."""


def students(standings: Standings, events: Sequence[Event], branches: Branches, way: str) -> list[Student]:
    """The pilot's students, with what the events say of their teachers."""
    overlap_with_base = {
        (name, capability): overlaps.at(BASE, name, capability).overlap
        for _, overlaps in overlaps_of(events)
        for name in overlaps.branches
        for capability in overlaps.capabilities
    }
    teachers: dict[str, dict[int | None, Teacher]] = {}
    for segment in branches.values():
        if segment.system == PILOT:
            teachers.setdefault(segment.row, {})[segment.seed] = segment.steps[0].teachers[0]
    points: list[Student] = []
    for row, by_seed in teachers.items():
        # Rows have the same teacher at every seed, but for the seed in its branch's name.
        ref, capability = next((teacher.ref, teacher.capability) for teacher in by_seed.values())
        assert ref.revision is not None
        lines = Line("base", BASE), Line(row, PILOT, row), Line(row, EXPERTS, f"{capability}@{ref.revision}")
        if not standings.has(lines[1]):
            continue
        before, after, ahead = (standings.by_seed(line, [capability], way) for line in lines)
        for seed in after:
            overlap = overlap_with_base.get((str(by_seed[seed].ref), capability))
            # The overlap was measured when the teacher ended its segment, if overlap is measured at all.
            if overlap is not None and seed in ahead:
                gain, lead = after[seed] - before[seed], ahead[seed] - before[seed]
                points.append(Student(seed, capability, ref.revision, overlap, gain, gain / lead if lead > 0 else None))
    return points


@dataclass(frozen=True, slots=True)
class Correlation:
    r: float
    interval: tuple[float, float] | None
    """95 %, or None where there are too few experts to draw from."""


def correlation(students: Sequence[Student], outcome: Literal["gain", "absorbed"], seed: int = 0) -> Correlation | None:
    """Pearson's r of the overlap with the outcome; None: too few students, or they do not vary.

    Students of one seed and capability have teachers that are one expert at different ages. They are no independent
    points, so that the bootstrap draws experts, with all their students.
    """
    clusters: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for student in students:
        value = student.gain if outcome == "gain" else student.absorbed
        if value is not None:
            clusters.setdefault((student.seed, student.capability), []).append((student.overlap, value))
    whole_N2 = np.array([point for cluster in clusters.values() for point in cluster])
    if len(whole_N2) < 3 or (np.ptp(whole_N2, axis=0) == 0).any():
        return None
    if len(clusters) < _FEWEST:
        return Correlation(_pearson(whole_N2), None)
    rng, experts = np.random.default_rng(seed), list(clusters.values())
    values: list[float] = []
    for draw in rng.integers(0, len(experts), (_RESAMPLED, len(experts))):
        points_N2 = np.array([point for index in draw for point in experts[index]])
        # Of few points a draw may be the same point again and again, which has no r.
        if (np.ptp(points_N2, axis=0) > 0).all():
            values.append(_pearson(points_N2))
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return Correlation(_pearson(whole_N2), (low, high))


def _pearson(points_N2: Floats) -> float:
    return float(np.corrcoef(points_N2.T)[0, 1])


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
