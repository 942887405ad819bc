"""What students take from one frozen expert, and whether it depends on how alike they were at the start.

    pilot    the paper's: one expert, and students that differ by the temperature that they were prepared at
    ages     not the paper's: one student, the base, and an expert as it was at growing ages. How alike they are and
             what the expert knows change together there

Pearson's r has an interval by a bootstrap that draws runs: students of one expert are no independent points.

Left out: the plans of both (`trainer.plan.comparison`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE, Ref
from trainer.compare.standings import Line, Standings
from trainer.plan.comparison import EXPERTS
from trainer.plan.results import lessons
from trainer.plan.steps import Segment
from trainer.reporting.events import Event, overlaps_of

_RESAMPLED = 2000
"""Draws of the bootstrap. Its 2.5 % tails have 50 each: enough for the two digits that are shown."""
_FEWEST = 6
"""Runs that a bootstrap needs: of three there are ten different draws, and no tails."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Student:
    """A branch that learnt from one expert as it was at an age, and from nothing else."""

    system: str
    """`pilot` or `ages`."""
    seed: int
    capability: str
    """The expert's."""
    setting: float
    """What differs between students of one expert: the temperature of the pilot, the age of the expert."""
    overlap: float
    """Of the student, before it listened, with the expert; so are `shared` and `kl`."""
    shared: float | None
    """None: a comparison of before did not measure it, nor `kl`."""
    kl: float | None
    gain: float
    absorbed: float | None
    """The gain as a share of what the expert was ahead; None: it was not."""


def students(standings: Standings, events: Sequence[Event], segments: Sequence[Segment], way: str) -> list[Student]:
    """Students of the plan's segments, those that were compared with their experts and examined."""
    likeness = {
        (student, teacher, capability): overlaps.at(student, teacher, capability)
        for _, overlaps in overlaps_of(events)
        for student in overlaps.branches
        for teacher in overlaps.branches
        for capability in overlaps.capabilities
    }
    begun: dict[str, Segment] = {}
    for segment in segments:
        begun.setdefault(segment.branch, segment)
    points: list[Student] = []
    for branch, lesson in lessons(segments).items():
        (teacher,), row, seed = lesson.steps[0].teachers, lesson.row, lesson.seed
        assert seed is not None
        assert teacher.ref.revision is not None
        # A student of the pilot was prepared; one of the ages is the base.
        is_base = lesson.first == 0
        start = BASE if is_base else str(Ref(branch, lesson.first))
        before = Line("base", BASE) if is_base else Line(row, lesson.system, f"{row}@{lesson.first}")
        expert = Line(row, EXPERTS, f"{teacher.capability}@{teacher.ref.revision}")
        lines = before, Line(row, lesson.system, row), expert
        alike = likeness.get((start, str(teacher.ref), teacher.capability))
        # It may not be examined yet, and overlap is not measured in all runs.
        if alike is None or not all(map(standings.has, lines)):
            continue
        at_first, at_last, experts = (standings.by_seed(line, [teacher.capability], way) for line in lines)
        if all(seed in by_seed for by_seed in (at_first, at_last, experts)):
            gain, lead = at_last[seed] - at_first[seed], experts[seed] - at_first[seed]
            temperature = begun[branch].steps[0].temperature
            points.append(
                Student(
                    lesson.system,
                    seed,
                    teacher.capability,
                    teacher.ref.revision if temperature is None else temperature,
                    *(alike.overlap, alike.shared, alike.kl),
                    gain,
                    gain / lead if lead > 0 else None,
                )
            )
    return points


Outcome = Literal["gain", "absorbed"]
Measure = Literal["overlap", "shared", "kl"]


@dataclass(frozen=True, slots=True)
class Correlation:
    r: float
    interval: tuple[float, float] | None
    """95 %, or None where there are too few runs to draw from."""


def correlation(
    students: Sequence[Student], outcome: Outcome, measure: Measure = "overlap", seed: int = 0
) -> Correlation | None:
    """Pearson's r of a measure with the outcome; None: too few students, or they do not vary.

    Students of one seed and capability have one expert. They are no independent points, so that the bootstrap draws
    experts, with all their students.
    """
    clusters: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for student in students:
        x, y = getattr(student, measure), getattr(student, outcome)
        if x is not None and y is not None:
            clusters.setdefault((student.seed, student.capability), []).append((x, y))
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
