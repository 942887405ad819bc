"""The paper's tables from the answers of a comparison: accuracies and differences with 95 % intervals, and verdicts.

    table 1   all branches, equal generated tokens    table 2   two branches
    table 3   all branches, steps by the paper's text and by its captions, the two readings of its budgets
    table 4   what each edge and the merge give       table 5   the share of RLVR steps in a cycle

A difference is taken question by question and seed by seed before its spread is. A table stands on the seeds that all
its lines have; lines with fewer have a table of their own, beside CoPD at those seeds.
A claim, that one line is ahead of another, *holds* where its difference is above zero with p < 0.05, *fails* where it
is below, and is *undecided* in between. Claims are tested together, so p is corrected by Holm: those of the paper as
one family, over all tables and ways of answering, and the rest as another. Nothing is decided by *one seed*, whose
interval is that of the questions alone.

Left out: where answers come from (`answers`), and how it is shown (`report`).

Axes: S seeds, Q questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapters.names import BASE
from trainer.compare.answers import ResultAnswers
from trainer.evaluation.intervals import Interval, holm, interval
from trainer.evaluation.ways import KINDS, PRIMARY
from trainer.plan.comparison import EXPERTS, MERGED, sweep_shares
from trainer.plan.seed_plan import pair_of
from trainer.recipe import MethodConfig

MEAN = "mean"
SIGNIFICANT = 0.05
Values = NDArray[np.float64]
Test = tuple["Claim", tuple[str, ...], tuple[int, ...], str]
"""A claim in a mean over exams, at some seeds, in a way of answering."""


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
    seeds: tuple[int, ...]
    """Those that all its lines have."""


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: Claim
    way: str
    seeds: tuple[int, ...]
    difference: Interval
    p: float | None
    """Corrected for all claims of the family; None of one seed, which is not tested."""

    @property
    def word(self) -> str:
        if self.p is None:
            return "one seed"
        if self.p >= SIGNIFICANT:
            return "undecided"
        return "holds" if self.difference.mean > 0 else "fails"


class Standings:
    """Answers by the line that gave them."""

    def __init__(self, answers: Sequence[ResultAnswers]) -> None:
        self._values: dict[tuple[str, str, str, str], dict[int, Values]] = {}
        for line in answers:
            self._values.setdefault((line.system, line.row, line.exam, line.way), {})[line.seed] = line.values
        self.seeds = sorted({line.seed for line in answers})
        ways = {(line.system, line.row, line.seed): set[str]() for line in answers}
        for line in answers:
            ways[line.system, line.row, line.seed].add(line.way)
        common = set.intersection(*ways.values()) if ways else set[str]()
        self.ways = [way for way in KINDS if way in common]
        """Those that all results of all seeds were answered in, the one that decides first."""
        self.lacking = sorted({seed for (_, _, seed), of_result in ways.items() if PRIMARY not in of_result})
        """Seeds with results that have no answers of the primary metric."""
        self.systems = list(dict.fromkeys(line.system for line in answers))

    def has(self, line: Line) -> bool:
        return any((line.system, line.row) == key[:2] for key in self._values)

    def accuracy(self, line: Line, exams: Sequence[str], way: str, seeds: Sequence[int]) -> Interval:
        """The mean over exams, which count alike, and over these seeds."""
        return interval(centred([self._stacked(line, exam, way, seeds) for exam in exams]))

    def difference(self, ahead: Line, behind: Line, exams: Sequence[str], way: str, seeds: Sequence[int]) -> Interval:
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


@dataclass(frozen=True, slots=True)
class Layout:
    """A table before it is known what was answered."""

    title: str
    exams: tuple[str, ...]
    subject: Line
    """The line that most claims are about: its seeds are the table's."""
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]


def tables(method: MethodConfig, capabilities: Sequence[str], standings: Standings) -> list[Table]:
    """The tables that have a claim, with the lines that were answered, each on the seeds that all its lines have."""
    pair = pair_of(method, capabilities)
    hub_first = (pair[0], *(name for name in capabilities if name != pair[0]))
    shares = sweep_shares(method)
    swept = {name: shares[name] for name in standings.systems if name in shares}
    copd = Line("CoPD", "copd3", MERGED)
    by_share = tuple(Line(f"CoPD, {rlvr} : {opd}", name, MERGED) for name, (rlvr, opd) in swept.items())
    share_claims = tuple(Claim(copd, line) for line in by_share)
    title = "RLVR : distillation steps in a cycle"
    sweep = Layout(title, hub_first, copd, (*by_share, copd), share_claims)
    # Without a rival of as many tokens the first would be the lines of another, under a name that says more.
    first = [_tokens(hub_first)] if {"mixed3-tokens", "mopd-tokens"} & set(standings.systems) else []
    layouts = (*first, _two(pair), _all(hub_first), _captions(hub_first), _spokes(hub_first), _ablations(pair), sweep)
    return [table for layout in layouts for table in answered(layout, standings)]


def answered(layout: Layout, standings: Standings) -> Iterator[Table]:
    """The layout as one table for each set of seeds: a line that few seeds have would cost all lines the rest."""
    lines = [line for line in layout.lines if standings.has(line)]
    subject = layout.subject if layout.subject in lines else next(iter(lines), None)
    if subject is None:
        return
    whole = set(standings.seeds_of(subject))
    groups: dict[tuple[int, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(sorted(whole.intersection(standings.seeds_of(line)))), []).append(line)
    for seeds, group in sorted(groups.items(), key=lambda item: -len(item[0])):
        # With the lines that it is compared with, as they are at these seeds.
        rivals = {
            line
            for claim in layout.claims
            if claim.ahead in group or claim.behind in group
            for line in (claim.ahead, claim.behind)
        }
        members = tuple(
            line for line in lines if line in group or (line in rivals and set(seeds) <= set(standings.seeds_of(line)))
        )
        claims = tuple(
            claim
            for claim in layout.claims
            if (claim.ahead in group or claim.behind in group) and claim.ahead in members and claim.behind in members
        )
        if seeds and claims:
            yield Table(layout.title, layout.exams, members, claims, seeds)


def _two(pair: tuple[str, str]) -> Layout:
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
    return Layout("two branches", pair, copd, lines, claims)


def _tokens(exams: tuple[str, ...]) -> Layout:
    """Budgets by the tokens that are generated, those of teachers and merged experts with them."""
    copd = Line("CoPD", "copd3", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in exams}
    mixed, mopd = Line("mixed RLVR, equal tokens", "mixed3-tokens"), Line("MOPD, equal tokens", "mopd-tokens")
    merge = Line("merge of experts, equal tokens", "merge3-tokens", MERGED)
    branches = tuple(Line(f"CoPD, {name} branch", "copd3", name) for name in exams)
    rivals = (Line("base", BASE), *home.values(), mixed, mopd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        Claim(copd, merge, is_papers=False),
        *(Claim(copd, home[name], name) for name in exams),
        Claim(mopd, mixed),
    )
    return Layout(
        f"{len(exams)} branches, equal generated tokens", exams, copd, (*rivals, merge, *branches, copd), claims
    )


def _captions(exams: tuple[str, ...]) -> Layout:
    """The captions of the paper's tables: CoPD has as many steps as its rivals. Its text gives those more (`_all`)."""
    copd, equal = Line("CoPD", "copd3", MERGED), Line("MOPD, equal steps", "mopd-equal")
    return Layout(f"{len(exams)} branches, equal steps", exams, copd, (equal, copd), (Claim(copd, equal),))


def _all(exams: tuple[str, ...]) -> Layout:
    base, copd = Line("base", BASE), Line("CoPD", "copd3", MERGED)
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in exams}
    mixed, mopd = Line("mixed RLVR", "mixed3"), Line("MOPD", "mopd")
    merge = Line("merge of experts", "merge3", MERGED)
    control = Line("control without teachers", "no_teachers", MERGED)
    pairwise = Line("CoPD, pairwise", "pairwise", MERGED)
    branches = tuple(Line(f"CoPD, {name} branch", "copd3", name) for name in exams)
    rivals = (base, *home.values(), mixed, mopd)
    claims = (
        *(Claim(copd, rival) for rival in rivals),
        Claim(copd, merge, is_papers=False),
        Claim(copd, control, is_papers=False),
        *(Claim(copd, home[name], name) for name in exams),
        Claim(mopd, mixed),
        *(Claim(mixed, expert) for expert in home.values()),
        *(Claim(pairwise, rival, is_papers=False) for rival in (mixed, mopd, merge, copd)),
    )
    lines = (*rivals, merge, control, *branches, copd, pairwise)
    return Layout(f"{len(exams)} branches, the paper's steps", exams, copd, lines, claims)


def _spokes(exams: tuple[str, ...]) -> Layout:
    """Spokes do not teach each other. Do they keep what their expert knows of the rest?"""
    spokes = exams[1:]
    home = {name: Line(f"{name} expert", EXPERTS, name) for name in spokes}
    branch = {name: Line(f"CoPD, {name} branch", "copd3", name) for name in spokes}
    claims = tuple(
        Claim(branch[name], home[name], exam, is_papers=False) for name in spokes for exam in spokes if exam != name
    )
    lines = (*home.values(), *branch.values())
    return Layout("what spokes keep of each other's capabilities", spokes, next(iter(branch.values())), lines, claims)


def _ablations(pair: tuple[str, str]) -> Layout:
    hub, spoke = pair  # in the systems' names, as in the paper: text and image
    copd = Line("CoPD", "copd2", MERGED)
    lines = (
        Line(f"without what {spoke} teaches", "no_image_edge", MERGED),
        Line(f"without what {hub} teaches", "no_text_edge", MERGED),
        Line(f"{hub} branch alone", "copd2", hub),
        Line(f"{spoke} branch alone", "copd2", spoke),
    )
    return Layout("what each part gives", pair, copd, (*lines, copd), tuple(Claim(copd, line) for line in lines))


def verdicts(standings: Standings, tables: Sequence[Table]) -> dict[Table, list[Verdict]]:
    """The verdicts on every claim, way by way, with p-values corrected for the number of those tested."""
    # By exams, seeds and way: a claim that stands in two tables is one test.
    differences: dict[Test, Interval] = {}
    by_table: dict[Table, list[Test]] = {}
    for table in tables:
        for way in standings.ways:
            for claim in table.claims:
                key = claim, table.exams if claim.exam == MEAN else (claim.exam,), table.seeds, way
                by_table.setdefault(table, []).append(key)
                if key not in differences:
                    differences[key] = standings.difference(claim.ahead, claim.behind, key[1], way, table.seeds)
    corrected: dict[Test, float] = {}
    for is_papers in (True, False):
        # The interval of one seed knows nothing of the next seed: nothing to test.
        keys = [key for key in differences if key[0].is_papers == is_papers and len(key[2]) > 1]
        p_values = [p for key in keys if (p := differences[key].p_value) is not None]
        corrected |= zip(keys, holm(p_values), strict=True)
    return {
        table: [Verdict(key[0], key[3], key[2], differences[key], corrected.get(key)) for key in keys]
        for table, keys in by_table.items()
    }


# ---- what a system keeps of the experts' gain ----


def gain_share(
    standings: Standings, exams: Sequence[str], line: Line, before: Line, experts: Sequence[Line], way: str
) -> float | None:
    """The line's gain as a share of the experts', each in its own exam, over the line's seeds; None where they have
    none.

    Of mixed RLVR this is 1 - Phi, of a student of frozen teachers eta: what the paper's bounds are made of.
    """
    seeds = standings.seeds_of(line)
    # A share, so that students of teachers that are ahead by more do not look better for that alone.
    start, end = (standings.accuracy(model, exams, way, seeds).mean for model in (before, line))
    pairs = zip(exams, experts, strict=True)
    goal = float(np.mean([standings.accuracy(expert, [exam], way, seeds).mean for exam, expert in pairs]))
    return (end - start) / (goal - start) if goal > start else None
