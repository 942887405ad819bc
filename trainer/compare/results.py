"""All that a comparison says, as one value and as JSON.

Left out: how it is shown (`report`).
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from adapters.names import BASE
from trainer.compare.choices import Rates, ScaledModel
from trainer.compare.costs import cost_by_step, cost_of
from trainer.compare.dynamics import (
    DynamicsPoint,
    PhaseChange,
    Pull,
    Share,
    phase_changes,
    pulls,
    series,
    sweep,
)
from trainer.compare.standings import Line, Standings, Table, Verdict, gain_share, tables, verdicts
from trainer.compare.students import Measure, Outcome, Student, correlation, students
from trainer.evaluation.intervals import Interval
from trainer.plan.comparison import BUILD, EXPERTS, of_seeds
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.results import planned_results
from trainer.plan.seed_plan import pair_of
from trainer.plan.steps import Plan
from trainer.recipe import Recipe
from trainer.reporting.events import Event


@dataclass(frozen=True, slots=True)
class GainShare:
    """What a rival of CoPD has of its experts' gain over its own start."""

    system: str
    label: str
    way: str
    exams: tuple[str, ...]
    share: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What the events of a comparison say beside its answers."""

    spent: Mapping[tuple[str, str], Cost]
    """The mean cost of a seed, by system and row."""
    series: Sequence[DynamicsPoint]
    pulls: Sequence[Pull]
    students: Sequence[Student]


@dataclass(frozen=True, slots=True)
class Results:
    name: str
    steps: int
    """Those of an expert."""
    way: str
    """The way of answering that numbers without intervals are shown for."""
    standings: Standings
    tables: Sequence[Table]
    verdicts: Mapping[Table, Sequence[Verdict]]
    blind: Mapping[str, float]
    """What the best answer gets that looks at nothing, by exam, where that is known."""
    measured: Measured
    phase_changes: Sequence[PhaseChange]
    merges: Mapping[int, Mapping[str, ScaledModel]]
    """How each system's result was made of its branches, by seed and system."""
    rates: Rates | None
    """The learning rates that were tried; None: all have that of the recipe."""
    sweep: Sequence[Share]
    gain_shares: Sequence[GainShare]

    @property
    def students(self) -> Mapping[str, Sequence[Student]]:
        """Those of one teacher, by their system."""
        systems = dict.fromkeys(student.system for student in self.measured.students)
        return {name: [student for student in self.measured.students if student.system == name] for name in systems}


def measured_by(events: Sequence[Event], recipe: Recipe, standings: Standings) -> Measured:
    # Of all systems, whichever the recipe asks for now: what was asked for before has been answered as well.
    plans = {seed: make_plan(of_seeds(recipe, seed, seed, tuple(BUILD))) for seed in standings.seeds}
    # The first segment of a branch says whose it is: another system may go on with it.
    segments = [segment for plan in plans.values() for segment in plan.segments]
    branches = {segment.branch: segment for plan in plans.values() for segment in reversed(plan.segments)}
    return Measured(
        _spent(recipe, plans, standings, events),
        series(events, branches),
        list(pulls(events, branches)),
        students(standings, events, segments, standings.ways[0] if standings.ways else ""),
    )


def results_of(
    recipe: Recipe,
    standings: Standings,
    measured: Measured,
    blind: Mapping[str, float],
    merges: Mapping[int, Mapping[str, ScaledModel]],
    rates: Rates | None = None,
) -> Results:
    capabilities, method = tuple(recipe.capabilities), recipe.method
    answered_tables = tables(method, capabilities, standings)
    way = standings.ways[0]  # the one that decides
    return Results(
        recipe.name,
        method.expert_steps,
        way,
        standings,
        answered_tables,
        verdicts(standings, answered_tables),
        blind,
        measured,
        phase_changes(measured.series),
        merges,
        rates,
        sweep(standings, method, capabilities, way),
        list(_gain_shares(standings, capabilities, pair_of(method, capabilities))),
    )


def _spent(
    recipe: Recipe, plans: Mapping[int, Plan], standings: Standings, events: Sequence[Event]
) -> dict[tuple[str, str], Cost]:
    by_step = cost_by_step(events, recipe.rollout)
    costs: dict[tuple[str, str], list[Cost]] = {}
    for seed, plan in plans.items():
        for result in planned_results(plan):
            # A system may have been added to some seeds only: the mean is over those.
            if seed in standings.seeds_of(Line("", result.system, result.row)):
                costs.setdefault((result.system, result.row), []).append(cost_of(result.refs, plan, by_step))
    return {key: sum(of_seeds, start=Cost()).over(len(of_seeds)) for key, of_seeds in costs.items()}


def _gain_shares(standings: Standings, exams: Sequence[str], pair: tuple[str, str]) -> Iterator[GainShare]:
    base, (hub, spoke) = Line(BASE, BASE), pair
    expert = {name: Line(name, EXPERTS, name) for name in exams}
    # A system, what it was before, and the capabilities whose experts it is measured by.
    cases = [
        (Line("mixed RLVR", "mixed2"), base, pair),
        (Line(f"static OPD {spoke} -> {hub}", "static_v2t"), expert[hub], (spoke,)),
        (Line(f"static OPD {hub} -> {spoke}", "static_t2v"), expert[spoke], (hub,)),
        (Line("mixed RLVR", "mixed3"), base, tuple(exams)),
        (Line("MOPD", "mopd"), base, tuple(exams)),
        (Line("mixed RLVR, equal tokens", "mixed3-tokens"), base, tuple(exams)),
        (Line("MOPD, equal tokens", "mopd-tokens"), base, tuple(exams)),
    ]
    for line, before, taught in cases:
        if standings.has(line):
            alone = [(name,) for name in taught] if len(taught) > 1 else []
            for way in standings.ways:
                for names in (*alone, tuple(taught)):
                    share = gain_share(standings, names, line, before, [expert[name] for name in names], way)
                    yield GainShare(line.system, line.label, way, names, share)


# ---- as JSON ----


def as_json(results: Results) -> dict[str, Any]:
    return {
        "name": results.name,
        "expert_steps": results.steps,
        "seeds": results.standings.seeds,
        "primary": {"way": results.way, "lacking": results.standings.lacking},
        "rates": asdict(results.rates) if results.rates else None,
        "blind": dict(results.blind),
        "tables": [_table_as_json(results, table) for table in results.tables],
        "series": [asdict(point) for point in results.measured.series],
        "phase_changes": [asdict(change) | {"change": number(change.change)} for change in results.phase_changes],
        "gradient_cosines": [asdict(pull) for pull in results.measured.pulls],
        "merges": {
            str(seed): {system: asdict(model) for system, model in models.items()}
            for seed, models in results.merges.items()
        },
        "students": [asdict(student) for student in results.measured.students],
        "correlations": [
            {"system": system, "outcome": outcome, "measure": measure} | asdict(r)
            for system, by_system in results.students.items()
            for outcome in get_args(Outcome)
            for measure in get_args(Measure)
            if (r := correlation(by_system, outcome, measure))
        ],
        "sweep": [asdict(share) | {"accuracy": number(share.accuracy)} for share in results.sweep],
        "gain_shares": [asdict(share) for share in results.gain_shares],
        "spent": [
            {"system": system, "row": row} | asdict(cost) for (system, row), cost in results.measured.spent.items()
        ],
    }


def measured_in(path: Path) -> Measured:
    """What the events said when this `comparison.json` was written: they are too large to be kept for ever."""
    numbers = json.loads(path.read_text())
    return Measured(
        {(cost.pop("system"), cost.pop("row")): Cost(**cost) for cost in numbers["spent"]},
        [DynamicsPoint(**point) for point in numbers["series"]],
        [Pull(**pull) for pull in numbers["gradient_cosines"]],
        [Student(**student) for student in numbers["students"]],
    )


def _table_as_json(results: Results, table: Table) -> dict[str, Any]:
    standings = results.standings
    lines: list[dict[str, Any]] = []
    for line in table.lines:
        accuracies = {
            way: {exam: number(standings.accuracy(line, [exam], way, table.seeds)) for exam in table.exams}
            | {"mean": number(standings.accuracy(line, table.exams, way, table.seeds))}
            for way in standings.ways
        }
        lines.append({"label": line.label, "system": line.system, "row": line.row} | accuracies)
    claims = [
        {
            "ahead": verdict.claim.ahead.label,
            "behind": verdict.claim.behind.label,
            "exam": verdict.claim.exam,
            "is_papers": verdict.claim.is_papers,
            "way": verdict.way,
            "difference": number(verdict.difference),
            "p": verdict.p if verdict.p is None else round(verdict.p, 4),
            "verdict": verdict.word,
        }
        for verdict in results.verdicts[table]
    ]
    return {"title": table.title, "seeds": table.seeds, "lines": lines, "claims": claims}


def number(interval: Interval) -> dict[str, float | None]:
    """For JSON, to a hundredth of a point."""
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    # JSON knows no NaN.
    return {name: None if value is None or math.isnan(value) else round(value, 4) for name, value in ends.items()}
