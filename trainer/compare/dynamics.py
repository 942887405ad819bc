"""How branches drift apart or stay together, and whether that is what teaching depends on: from a comparison's events.

    series    overlap and symmetric KL between branches over the steps, of the experts and of CoPD
    pulls     cosines between the gradients of a mixed branch's capabilities
    pilot     gain of a fresh student against its overlap with the teacher at the start, with Pearson's r
    sweep     accuracy of the merge by the share of RLVR steps in a cycle

Left out: accuracies of systems beside each other (`standings`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE, Ref
from trainer.compare.standings import Line, Standings
from trainer.evaluation.intervals import Interval
from trainer.evaluation.overlap import Overlaps
from trainer.loop import NATIVE
from trainer.plan.comparison import EXPERTS, MERGED, seed_and_system, shares_of
from trainer.recipe import MethodConfig
from trainer.reporting.events import Event, overlaps_of
from trainer.update.update import COSINE

_RESAMPLED = 2000
Floats = NDArray[np.float64]


# ---- overlap over training ----


@dataclass(frozen=True, slots=True)
class DynamicsPoint:
    """Branches of one system and seed at one step, over all pairs that learn from each other, both ways."""

    system: str
    seed: int
    phase: str
    step: int
    overlap: float
    """Mean over pairs and capabilities."""
    lowest: float
    kl: float
    from_base: float
    """Mean overlap with the base."""


def series(events: Sequence[Event]) -> list[DynamicsPoint]:
    return [point for event, found in overlaps_of(events) if (point := _point(event, found)) is not None]


def _point(event: Event, found: Overlaps) -> DynamicsPoint | None:
    names = [name for name in found.branches if name != BASE]
    if len(names) < 2:
        return None
    seed, system = seed_and_system(event["system"])
    pairs = [found.at(a, b, c) for a in names for b in names if a != b for c in found.capabilities]
    from_base = [found.at(name, BASE, c)[0] for name in names for c in found.capabilities]
    overlaps = [overlap for overlap, _ in pairs]
    return DynamicsPoint(
        system,
        seed,
        event["phase"],
        event["step"],
        float(np.mean(overlaps)),
        min(overlaps),
        float(np.mean([kl for _, kl in pairs])),
        float(np.mean(from_base)),
    )


# ---- gradients of mixed RLVR ----


@dataclass(frozen=True, slots=True)
class Pull:
    """Two capabilities in one step of a mixed branch: 1, they pull the same way; below 0, against each other."""

    system: str
    seed: int
    step: int
    pair: str
    cosine: float


def pulls(events: Sequence[Event]) -> Iterator[Pull]:
    for event in events:
        if event["kind"] == "step":
            for name, value in event["metrics"].items():
                if name.startswith(f"{NATIVE}/{COSINE}:"):
                    seed, system = seed_and_system(event["branch"])
                    yield Pull(system, seed, event["step"], " - ".join(name.split(":")[1:]), value)


# ---- pilot ----


@dataclass(frozen=True, slots=True)
class Student:
    """A fresh branch that learnt from one checkpoint of one expert."""

    seed: int
    capability: str
    age: int
    """Of the teacher, in steps."""
    overlap: float
    """Of the student before it began, the base, with its teacher."""
    gain: float
    absorbed: float | None
    """The gain as a share of what the teacher was ahead."""


def students(found: Standings, events: Sequence[Event], way: str) -> list[Student]:
    """Those of the pilot, with what `series` saw of their teachers."""
    overlaps = {
        (ref.branch, ref.revision, capability): both.at(BASE, name, capability)[0]
        for _, both in overlaps_of(events)
        for name in both.branches
        if name != BASE
        for capability in both.capabilities
        for ref in [Ref.parse(name)]
    }
    return list(_students(found, overlaps, way))


def _students(found: Standings, overlaps: dict[tuple[str, int | None, str], float], way: str) -> Iterator[Student]:
    base = Line("base", BASE)
    for row in found.rows("pilot"):
        capability, age = row.rsplit("-", 1)
        student, teacher = Line(row, "pilot", row), Line(row, EXPERTS, f"{capability}@{age}")
        levels = [found.by_seed(line, [capability], way) for line in (base, student, teacher)]
        for seed in levels[1]:
            overlap = overlaps.get((f"s{seed}-{EXPERTS}-{capability}", int(age), capability))
            if overlap is None or seed not in levels[2]:
                continue
            before, after, ahead = (level[seed] for level in levels)
            share = (after - before) / (ahead - before) if ahead > before else None
            yield Student(seed, capability, int(age), overlap, after - before, share)


def correlation(x_N: Sequence[float], y_N: Sequence[float], seed: int = 0) -> tuple[float, float, float] | None:
    """Pearson's r with a 95 % interval by resampling points; None: too few, or they do not vary."""
    x, y = np.asarray(x_N), np.asarray(y_N)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(x), (_RESAMPLED, len(x)))
    values = [_pearson(x[one], y[one]) for one in drawn if np.ptp(x[one]) > 0 and np.ptp(y[one]) > 0]
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return _pearson(x, y), low, high


def _pearson(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


# ---- sweep ----


@dataclass(frozen=True, slots=True)
class Share:
    """So many RLVR steps of a cycle."""

    rlvr_steps: int
    opd_steps: int
    accuracy: Interval


def sweep(found: Standings, method: MethodConfig, exams: Sequence[str], way: str) -> list[Share]:
    """With CoPD itself in its place, of the seeds that all have; empty where no other share was tried."""
    steps = shares_of(found.systems)
    if not steps:
        return []
    steps["copd3"] = (method.rlvr_steps, method.opd_steps)
    merges = {name: line for name in steps if found.has(line := Line(name, name, MERGED))}
    common = sorted(set.intersection(*(set(found.seeds_of(line)) for line in merges.values())))
    if not common:
        return []
    shares = [Share(*steps[name], found.accuracy(line, exams, way, common)) for name, line in merges.items()]
    return sorted(shares, key=lambda share: share.rlvr_steps)
