"""All that a comparison says, as one value and as JSON.

Left out: how it is shown (`report`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapters.names import BASE
from trainer.compare.answers import MergedModel, ResultAnswers
from trainer.compare.costs import cost_by_step, cost_of
from trainer.compare.dynamics import DynamicsPoint, Pull, Share, Student, correlation, pulls, series, students, sweep
from trainer.compare.standings import Line, Standings, Table, Verdict, absorption, tables, verdicts
from trainer.evaluation.intervals import Interval
from trainer.plan.comparison import BUILD, EXPERTS, of_seeds, pair_of, planned_results
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan
from trainer.recipe import Recipe
from trainer.reporting.events import Event


@dataclass(frozen=True, slots=True)
class Absorbed:
    """The share of a teacher's lead that a student took."""

    student: str
    capability: str
    share: float | None


@dataclass(frozen=True, slots=True)
class Results:
    name: str
    steps: int
    """Those of an expert."""
    way: str
    """The way of answering that numbers without intervals are shown for."""
    standings: Standings
    tables: Sequence[Table]
    verdicts: Mapping[str, Mapping[str, Sequence[Verdict]]]
    """The verdicts on a table's claims, by its title and way."""
    spent: Mapping[tuple[str, str], Cost]
    """The mean cost of a seed, by system and row."""
    blind: Mapping[str, float]
    """What the best answer gets that looks at nothing, by exam, where that is known."""
    series: Sequence[DynamicsPoint]
    pulls: Sequence[Pull]
    merges: Mapping[int, Mapping[str, MergedModel]]
    """How branches were merged, by seed and system."""
    students: Sequence[Student]
    sweep: Sequence[Share]
    absorbed: Sequence[Absorbed]


def results_of(
    recipe: Recipe,
    answers: Sequence[ResultAnswers],
    events: Sequence[Event],
    blind: Mapping[str, float],
    merges: Mapping[int, Mapping[str, MergedModel]],
) -> Results:
    standings = Standings(answers)
    capabilities, method = tuple(recipe.capabilities), recipe.method
    answered_tables = tables(method, capabilities, standings)
    # Of all systems, whichever the recipe asks for now: what was asked for before has been answered as well.
    plans = {seed: make_plan(of_seeds(recipe, seed, seed, tuple(BUILD))) for seed in standings.seeds}
    branches = {segment.branch: segment for plan in plans.values() for segment in plan.segments}
    way = standings.ways[0]  # greedy, wherever both are asked
    return Results(
        recipe.name,
        method.expert_steps,
        way,
        standings,
        answered_tables,
        {table.title: {way: verdicts(standings, table, way) for way in standings.ways} for table in answered_tables},
        _spent(recipe, plans, standings, events),
        blind,
        series(events, branches),
        list(pulls(events, branches)),
        merges,
        students(standings, events, branches, way),
        sweep(standings, method, capabilities, way),
        _absorbed(standings, capabilities, pair_of(method, capabilities), way),
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


def _absorbed(standings: Standings, exams: Sequence[str], pair: tuple[str, str], way: str) -> list[Absorbed]:
    base, (hub, spoke) = Line(BASE, BASE), pair
    expert = {name: Line(name, EXPERTS, name) for name in exams}
    # A student, what it was before, and the capabilities that its teachers are experts of.
    cases = [
        ("static_v2t", expert[hub], [spoke]),
        ("static_t2v", expert[spoke], [hub]),
        ("mopd", base, exams),
    ]
    return [
        Absorbed(system, exam, absorption(standings, exam, Line(system, system), before, expert[exam], way))
        for system, before, taught in cases
        if standings.has(Line(system, system))
        for exam in taught
    ]


# ---- as JSON ----


def as_json(results: Results) -> dict[str, Any]:
    return {
        "name": results.name,
        "expert_steps": results.steps,
        "seeds": results.standings.seeds,
        "blind": dict(results.blind),
        "tables": [_table_as_json(results, table) for table in results.tables],
        "series": [asdict(point) for point in results.series],
        "gradient_cosines": [asdict(pull) for pull in results.pulls],
        "merges": {
            str(seed): {system: asdict(model) for system, model in models.items()}
            for seed, models in results.merges.items()
        },
        "pilot": {
            "students": [asdict(student) for student in results.students],
            "r_gain": correlation([s.overlap for s in results.students], [s.gain for s in results.students]),
        },
        "sweep": [asdict(share) | {"accuracy": number(share.accuracy)} for share in results.sweep],
        "absorption": [asdict(absorbed) for absorbed in results.absorbed],
    }


def _table_as_json(results: Results, table: Table) -> dict[str, Any]:
    standings = results.standings
    lines: list[dict[str, Any]] = []
    for line in table.lines:
        accuracies = {
            way: {exam: number(standings.accuracy(line, [exam], way)) for exam in table.exams}
            | {"mean": number(standings.accuracy(line, table.exams, way))}
            for way in standings.ways
        }
        spent = results.spent.get((line.system, line.row))  # none of the base
        lines.append(
            {"label": line.label, "system": line.system, "row": line.row, "seeds": standings.seeds_of(line)}
            | accuracies
            | {"spent": asdict(spent) if spent else None}
        )
    claims = [
        {
            "ahead": verdict.claim.ahead.label,
            "behind": verdict.claim.behind.label,
            "exam": verdict.claim.exam,
            "way": way,
            "difference": number(verdict.difference),
            "verdict": verdict.word,
        }
        for way, of_way in results.verdicts[table.title].items()
        for verdict in of_way
    ]
    return {"title": table.title, "lines": lines, "claims": claims}


def number(interval: Interval) -> dict[str, float | None]:
    """For JSON, to a hundredth of a point."""
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    # JSON knows no NaN.
    return {name: None if value is None or math.isnan(value) else round(value, 4) for name, value in ends.items()}
