"""The paper's tables from the answers of a comparison: accuracies and differences with 95 % intervals, and verdicts.

    table 1   two branches                            table 2   all branches
    table 3   what each edge and the merge give       table 4   the share of RLVR steps in a cycle

A difference is taken question by question and seed by seed before its spread is. A claim of the paper, that one line is
ahead of another, *holds* where the interval of the difference lies above zero, *fails* where it lies below, and is
*undecided* in between.

Left out: where answers come from (`answers`), and how it is shown (`report`).

Axes: S seeds, Q questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE
from trainer.compare.answers import ResultAnswers
from trainer.evaluation.intervals import Interval, interval
from trainer.plan.comparison import EXPERTS, MERGED, pair_of, sweep_shares
from trainer.recipe import MethodConfig

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
        # Without an end there is one value, which says nothing of how far it may be off.
        if low is None or high is None or low <= 0 <= high:
            return "undecided"
        return "holds" if low > 0 else "fails"


class Standings:
    """Answers by the line that gave them."""

    def __init__(self, answers: Sequence[ResultAnswers]) -> None:
        self._values: dict[tuple[str, str, str, str], dict[int, Values]] = {}
        for line in answers:
            self._values.setdefault((line.system, line.row, line.exam, line.way), {})[line.seed] = line.values
        self.seeds = sorted({line.seed for line in answers})
        self.ways = list(dict.fromkeys(line.way for line in answers))
        self.systems = list(dict.fromkeys(line.system for line in answers))

    def has(self, line: Line) -> bool:
        return any((line.system, line.row) == key[:2] for key in self._values)

    def accuracy(self, line: Line, exams: Sequence[str], way: str, seeds: Sequence[int] | None = None) -> Interval:
        """The mean over exams, which count alike, and over all its seeds or those given."""
        chosen = self.seeds_of(line) if seeds is None else seeds
        return interval(centred([self._stacked(line, exam, way, chosen) for exam in exams]))

    def difference(self, ahead: Line, behind: Line, exams: Sequence[str], way: str) -> Interval:
        # It is taken seed by seed, and seeds may have questions of their own: only seeds of both count.
        seeds = [seed for seed in self.seeds_of(ahead) if seed in self.seeds_of(behind)]
        return interval(centred([
            self._stacked(ahead, exam, way, seeds) - self._stacked(behind, exam, way, seeds) for exam in exams
        ]))  # fmt: skip

    def by_seed(self, line: Line, exams: Sequence[str], way: str) -> dict[int, float]:
        """The mean over exams, for each seed that the line has."""
        seeds = self.seeds_of(line)
        # Here seeds stand beside each other, so a question that nobody could judge leaves at its own seed only.
        means = [np.nanmean(self._stacked(line, exam, way, seeds), axis=1) for exam in exams]
        return dict(zip(seeds, np.mean(means, axis=0).tolist(), strict=True))

    def seeds_of(self, line: Line) -> list[int]:
        groups = (by_seed for key, by_seed in self._values.items() if key[:2] == (line.system, line.row))
        return sorted({seed for by_seed in groups for seed in by_seed})

    def _stacked(self, line: Line, exam: str, way: str, seeds: Sequence[int]) -> Values:
        by_seed = self._values[line.system, line.row, exam, way]
        return np.stack([by_seed[seed] for seed in seeds])


def centred(exams_SQ: Sequence[Values]) -> Values:
    """Exams side by side, each with the same weight and the same mean: how hard an exam is says nothing of the spread
    within it, but a seed's luck is shared by all of them."""
    # The table of seeds and questions has no holes: what nobody could judge at one seed leaves for all of them.
    judged = [values_SQ[:, ~np.isnan(values_SQ).any(axis=0)] for values_SQ in exams_SQ]
    means = [float(values_SQ.mean()) for values_SQ in judged]
    whole, count = sum(values_SQ.shape[1] for values_SQ in judged), len(judged)
    # The mean over all columns weighs an exam by its questions; Q_all / (E Q) undoes that. With equal Q it is 1.
    scaled = [
        (values_SQ - mean) * (whole / (count * values_SQ.shape[1]))
        for values_SQ, mean in zip(judged, means, strict=True)
    ]
    return np.concatenate(scaled, axis=1) + sum(means) / count


# ---- the paper's tables ----


def tables(method: MethodConfig, capabilities: Sequence[str], standings: Standings) -> list[Table]:
    """The tables that have a claim, with the lines that were answered."""
    pair = pair_of(method, capabilities)
    hub_first = (pair[0], *(name for name in capabilities if name != pair[0]))
    shares = sweep_shares(method)
    swept = {name: shares[name] for name in standings.systems if name in shares}
    answered: list[Table] = []
    copd = Line("CoPD", "copd3", MERGED)
    by_share = tuple(Line(f"CoPD, {rlvr} : {opd}", name, MERGED) for name, (rlvr, opd) in swept.items())
    share_claims = tuple(Claim(copd, line) for line in by_share)
    sweep = Table("RLVR : distillation steps in a cycle", hub_first, (*by_share, copd), share_claims)
    for table in (_two(pair), _all(hub_first), _ablations(pair), sweep):
        lines = tuple(line for line in table.lines if standings.has(line))
        claims = tuple(claim for claim in table.claims if claim.ahead in lines and claim.behind in lines)
        if claims:
            answered.append(Table(table.title, table.exams, lines, claims))
    return answered


def _two(pair: tuple[str, str]) -> Table:
    hub, spoke = pair
    base, copd = Line("base", BASE), Line("CoPD", "copd2", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in pair}
    mixed = Line("mixed RLVR", "mixed2")
    v2t = Line(f"static OPD {spoke} -> {hub}", "static_v2t")
    t2v = Line(f"static OPD {hub} -> {spoke}", "static_t2v")
    merge = Line("merge of experts", "merge2", MERGED)
    branches = tuple(Line(f"CoPD, {name} branch", "copd2", name) for name in pair)
    # In the order of the paper's columns.
    rivals = (base, home[spoke], home[hub], mixed, v2t, t2v)
    lines = (*rivals, merge, *branches, copd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        # The paper merges no finished experts. Without that line nobody knows what teaching adds to merging.
        Claim(copd, merge, is_papers=False),
        # At home an expert has had all its steps for this exam; a merge should not lose that.
        *(Claim(copd, home[name], name) for name in pair),
        Claim(home[hub], mixed),
    )
    return Table("two branches", pair, lines, claims)


def _all(exams: tuple[str, ...]) -> Table:
    base, copd = Line("base", BASE), Line("CoPD", "copd3", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in exams}
    mixed, mopd = Line("mixed RLVR", "mixed3"), Line("MOPD", "mopd")
    merge = Line("merge of experts", "merge3", MERGED)
    control = Line("control without teachers", "no_teachers", MERGED)
    pairwise, equal = Line("CoPD, pairwise", "pairwise", MERGED), Line("MOPD, equal steps", "mopd-equal")
    branches = tuple(Line(f"CoPD, {name} branch", "copd3", name) for name in exams)
    rivals = (base, *home.values(), mixed, mopd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        Claim(copd, merge, is_papers=False),
        Claim(copd, control, is_papers=False),
        # By the paper's rule MOPD has more steps than CoPD; here it has as many.
        Claim(copd, equal, is_papers=False),
        *(Claim(copd, home[name], name) for name in exams),
        Claim(mopd, mixed),
        *(Claim(mixed, expert) for expert in home.values()),
        *(Claim(pairwise, rival, is_papers=False) for rival in (mixed, mopd, merge, copd)),
    )
    return Table(f"{len(exams)} branches", exams, (*rivals, equal, merge, control, *branches, copd, pairwise), claims)


def _ablations(pair: tuple[str, str]) -> Table:
    hub, spoke = pair  # in the systems' names, as in the paper: text and image
    copd = Line("CoPD", "copd2", MERGED)
    lines = (
        Line(f"without what {spoke} teaches", "no_image_edge", MERGED),
        Line(f"without what {hub} teaches", "no_text_edge", MERGED),
        Line(f"{hub} branch alone", "copd2", hub),
        Line(f"{spoke} branch alone", "copd2", spoke),
    )
    return Table("what each part gives", pair, (*lines, copd), tuple(Claim(copd, line) for line in lines))


def verdicts(standings: Standings, table: Table, way: str) -> list[Verdict]:
    return [
        Verdict(
            claim,
            standings.difference(claim.ahead, claim.behind, table.exams if claim.exam == MEAN else [claim.exam], way),
        )
        for claim in table.claims
    ]


# ---- what a student takes from a teacher ----


def absorption(standings: Standings, exam: str, student: Line, before: Line, teacher: Line, way: str) -> float | None:
    """The student's gain as a share of what its teacher was ahead, of its own seeds; None where that is nothing."""
    seeds = standings.seeds_of(student)
    # A share, so that students of teachers that are ahead by more do not look better for that alone.
    start, end, goal = (standings.accuracy(line, [exam], way, seeds).mean for line in (before, student, teacher))
    return (end - start) / (goal - start) if goal > start else None
