"""The paper's tables from the answers of a comparison: accuracies and differences with 95 % intervals, and verdicts.

    table 1   two branches                            table 2   all branches
    table 3   what each edge and the merge give       table 4   the share of RLVR steps in a cycle

A difference is taken question by question and seed by seed before its spread is. A claim of the paper, that one line is
ahead of another, *holds* where the interval of the difference lies above zero, *fails* where it lies below, and is
*undecided* in between.

Left out: where answers come from (`answers`), and how it is shown (`report`).

Axes: S seeds, Q questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE
from trainer.compare.answers import ResultAnswers
from trainer.evaluation.intervals import Interval, interval
from trainer.plan.comparison import EXPERTS, MERGED, shares_of

MEAN = "mean"
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A result, over all seeds."""

    label: str
    system: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """That one line is ahead of another in an exam, or in the mean of the table's."""

    ahead: Line
    behind: Line
    exam: str = MEAN
    is_papers: bool = True
    """Or a control's, that the paper does not have."""


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    exams: tuple[str, ...]
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: Claim
    difference: Interval

    @property
    def word(self) -> str:
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "undecided"
        return "holds" if low > 0 else "fails"


class Standings:
    """Answers by what gave them."""

    def __init__(self, answers: Sequence[ResultAnswers]) -> None:
        self._of: dict[tuple[str, str, str, str], dict[int, Values]] = {}
        for one in answers:
            self._of.setdefault((one.system, one.row, one.exam, one.way), {})[one.seed] = one.values
        self.seeds = sorted({one.seed for one in answers})
        self.ways = list(dict.fromkeys(one.way for one in answers))
        self.systems = list(dict.fromkeys(one.system for one in answers))

    def rows(self, system: str) -> list[str]:
        return list(dict.fromkeys(row for one, row, *_ in self._of if one == system))

    def has(self, line: Line) -> bool:
        return any((line.system, line.row) == key[:2] for key in self._of)

    def accuracy(self, line: Line, exams: Sequence[str], way: str, seeds: Sequence[int] | None = None) -> Interval:
        """The mean over exams, which count alike, and over all its seeds or those given."""
        chosen = self.seeds_of(line) if seeds is None else seeds
        return interval(centred([self._values(line, exam, way, chosen) for exam in exams]))

    def difference(self, one: Line, other: Line, exams: Sequence[str], way: str) -> Interval:
        seeds = [seed for seed in self.seeds_of(one) if seed in self.seeds_of(other)]
        pairs = [(self._values(one, exam, way, seeds), self._values(other, exam, way, seeds)) for exam in exams]
        return interval(centred([a_SQ - b_SQ for a_SQ, b_SQ in pairs]))

    def verdict(self, claim: Claim, table: Table, way: str) -> Verdict:
        exams = table.exams if claim.exam == MEAN else (claim.exam,)
        return Verdict(claim, self.difference(claim.ahead, claim.behind, exams, way))

    def by_seed(self, line: Line, exams: Sequence[str], way: str) -> dict[int, float]:
        seeds = self.seeds_of(line)
        means = [np.nanmean(self._values(line, exam, way, seeds), axis=1) for exam in exams]
        return dict(zip(seeds, np.mean(means, axis=0).tolist(), strict=True))

    def seeds_of(self, line: Line) -> list[int]:
        return sorted({seed for key, of in self._of.items() if key[:2] == (line.system, line.row) for seed in of})

    def _values(self, line: Line, exam: str, way: str, seeds: Sequence[int]) -> Values:
        of_seed = self._of[line.system, line.row, exam, way]
        return np.stack([of_seed[seed] for seed in seeds])


def centred(exams_SQ: Sequence[Values]) -> Values:
    """Exams side by side, each with the same weight and the same mean: how hard one is says nothing of the spread
    within it, but a seed's luck is shared by all of them."""
    kept = [values_SQ[:, ~np.isnan(values_SQ).any(axis=0)] for values_SQ in exams_SQ]
    means = [float(values_SQ.mean()) for values_SQ in kept]
    whole, count = sum(values_SQ.shape[1] for values_SQ in kept), len(kept)
    scaled = [
        (values_SQ - mean) * (whole / (count * values_SQ.shape[1])) for values_SQ, mean in zip(kept, means, strict=True)
    ]
    return np.concatenate(scaled, axis=1) + sum(means) / count


# ---- the paper's tables ----


def tables(capabilities: Sequence[str], pair: tuple[str, str], found: Standings) -> list[Table]:
    """With the lines that were answered."""
    return [
        kept
        for table in (_two(pair), _all(capabilities, pair), _ablations(pair), _shares(capabilities, pair, found))
        if (kept := _answered(table, found)).claims
    ]


def _answered(table: Table, found: Standings) -> Table:
    lines = tuple(line for line in table.lines if found.has(line))
    claims = tuple(claim for claim in table.claims if claim.ahead in lines and claim.behind in lines)
    return Table(table.title, table.exams, lines, claims)


def _two(pair: tuple[str, str]) -> Table:
    hub, other = pair
    base, copd = Line("base", BASE), Line("CoPD", "copd2", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in pair}
    mixed = Line("mixed RLVR", "mixed2")
    onto = Line(f"static OPD {other} -> {hub}", "vt")
    back = Line(f"static OPD {hub} -> {other}", "tv")
    merge = Line("merge of experts", "merge2", MERGED)
    branches = tuple(Line(f"CoPD, {name} branch", "copd2", name) for name in pair)
    rivals = (base, home[other], home[hub], mixed, onto, back)
    lines = (*rivals, merge, *branches, copd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        Claim(copd, merge, is_papers=False),
        *(Claim(copd, home[name], name) for name in pair),
        Claim(home[hub], mixed),
    )
    return Table("two branches", pair, lines, claims)


def _all(capabilities: Sequence[str], pair: tuple[str, str]) -> Table:
    exams = _hub_first(capabilities, pair)
    base, copd = Line("base", BASE), Line("CoPD", "copd3", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in exams}
    mixed, mopd = Line("mixed RLVR", "mixed3"), Line("MOPD", "mopd")
    merge, control = Line("merge of experts", "merge3", MERGED), Line("control without teachers", "neg", MERGED)
    pairwise, equal = Line("CoPD, pairwise", "pairwise", MERGED), Line("MOPD, equal steps", "mopd-equal")
    branches = tuple(Line(f"CoPD, {name} branch", "copd3", name) for name in exams)
    rivals = (base, *home.values(), mixed, mopd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        Claim(copd, merge, is_papers=False),
        Claim(copd, control, is_papers=False),
        Claim(copd, equal, is_papers=False),
        *(Claim(copd, home[name], name) for name in exams),
        Claim(mopd, mixed),
        *(Claim(mixed, one) for one in home.values()),
        *(Claim(pairwise, other, is_papers=False) for other in (mixed, mopd, merge, copd)),
    )
    return Table(f"{len(exams)} branches", exams, (*rivals, equal, merge, control, *branches, copd, pairwise), claims)


def _ablations(pair: tuple[str, str]) -> Table:
    hub, other = pair
    copd = Line("CoPD", "copd2", MERGED)
    lines = (
        Line(f"without what {other} teaches", "noi", MERGED),
        Line(f"without what {hub} teaches", "not", MERGED),
        Line(f"{hub} branch alone", "copd2", hub),
        Line(f"{other} branch alone", "copd2", other),
    )
    return Table("what each part gives", pair, (*lines, copd), tuple(Claim(copd, line) for line in lines))


def _shares(capabilities: Sequence[str], pair: tuple[str, str], found: Standings) -> Table:
    copd = Line("CoPD", "copd3", MERGED)
    shares = shares_of(found.systems).items()
    lines = tuple(Line(f"CoPD, {rlvr} : {opd}", name, MERGED) for name, (rlvr, opd) in shares)
    claims = tuple(Claim(copd, line) for line in lines)
    return Table("RLVR : distillation steps in a cycle", _hub_first(capabilities, pair), (*lines, copd), claims)


def _hub_first(capabilities: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    return (pair[0], *(name for name in capabilities if name != pair[0]))


def verdicts(found: Standings, table: Table, way: str) -> Iterator[Verdict]:
    return (found.verdict(claim, table, way) for claim in table.claims)


# ---- what a student takes from a teacher ----


def absorption(found: Standings, exam: str, student: Line, before: Line, teacher: Line, way: str) -> float | None:
    """The student's gain as a share of what its teacher was ahead, of its own seeds; None where that is nothing."""
    seeds = found.seeds_of(student)
    start, end, goal = (found.accuracy(line, [exam], way, seeds).mean for line in (before, student, teacher))
    return (end - start) / (goal - start) if goal > start else None
