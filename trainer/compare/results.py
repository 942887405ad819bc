"""All that a comparison says, as one value and as JSON.

Left out: how it is shown (`report`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapters.names import BASE
from trainer.compare.answers import MergedModel, ResultAnswers
from trainer.compare.costs import Spent, cost_of, spent_by_step
from trainer.compare.dynamics import DynamicsPoint, Pull, Share, Student, correlation, pulls, series, students, sweep
from trainer.compare.standings import Line, Standings, Table, Verdict, absorption, tables, verdicts
from trainer.evaluation.intervals import Interval
from trainer.plan.comparison import BUILD, EXPERTS, of_seeds, pair_of, planned_results
from trainer.plan.make import make_plan
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
    """Of an expert."""
    way: str
    """By which the tables' verdicts go."""
    found: Standings
    tables: Sequence[Table]
    verdicts: Mapping[str, Mapping[str, Sequence[Verdict]]]
    """By table and way."""
    spent: Mapping[tuple[str, str], Spent]
    """By system and row: the mean of the seeds."""
    blind: Mapping[str, float]
    series: Sequence[DynamicsPoint]
    pulls: Sequence[Pull]
    merges: Mapping[int, Mapping[str, MergedModel]]
    """By seed and system."""
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
    found = Standings(answers)
    exams, pair = tuple(recipe.capabilities), pair_of(recipe.method, tuple(recipe.capabilities))
    made = tables(exams, pair, found)
    way = found.ways[0]
    return Results(
        recipe.name,
        recipe.method.expert_steps,
        way,
        found,
        made,
        {table.title: {way: list(verdicts(found, table, way)) for way in found.ways} for table in made},
        _spent(recipe, found, events),
        blind,
        series(events),
        list(pulls(events)),
        merges,
        students(found, events, way),
        sweep(found, recipe.method, exams, way),
        list(_absorbed(found, exams, pair, way)),
    )


def _spent(recipe: Recipe, found: Standings, events: Sequence[Event]) -> dict[tuple[str, str], Spent]:
    """The mean of the seeds that a line has, of every system that was answered, asked for this time or before."""
    by_step = spent_by_step(events, recipe.rollout)
    costs: dict[tuple[str, str], list[Spent]] = {}
    for seed in found.seeds:
        made = make_plan(of_seeds(recipe, seed, seed, tuple(BUILD)))
        for entry in planned_results(made):
            if seed in found.seeds_of(Line("", entry.system, entry.row)):
                costs.setdefault((entry.system, entry.row), []).append(cost_of(entry.refs, made, by_step))
    return {key: sum(several, start=Spent()).over(len(several)) for key, several in costs.items()}


def _absorbed(found: Standings, exams: Sequence[str], pair: tuple[str, str], way: str) -> Iterator[Absorbed]:
    base, (hub, other) = Line(BASE, BASE), pair
    expert = {name: Line(name, EXPERTS, name) for name in exams}
    cases = [("vt", expert[hub], [other]), ("tv", expert[other], [hub]), ("mopd", base, exams)]
    for system, before, taught in cases:
        student = Line(system, system)
        if found.has(student):
            for exam in taught:
                yield Absorbed(system, exam, absorption(found, exam, student, before, expert[exam], way))


# ---- as JSON ----


def as_json(results: Results) -> dict[str, Any]:
    found = results.found
    return {
        "name": results.name,
        "expert_steps": results.steps,
        "seeds": found.seeds,
        "blind": dict(results.blind),
        "tables": [_table(results, table) for table in results.tables],
        "series": [asdict(point) for point in results.series],
        "gradient_cosines": [asdict(one) for one in results.pulls],
        "merges": {str(seed): {name: asdict(one) for name, one in of.items()} for seed, of in results.merges.items()},
        "pilot": {
            "students": [asdict(one) for one in results.students],
            "r_gain": correlation([s.overlap for s in results.students], [s.gain for s in results.students]),
        },
        "sweep": [asdict(share) | {"accuracy": number(share.accuracy)} for share in results.sweep],
        "absorption": [asdict(one) for one in results.absorbed],
    }


def _table(results: Results, table: Table) -> dict[str, Any]:
    found = results.found
    return {
        "title": table.title,
        "lines": [
            {
                "label": line.label,
                "system": line.system,
                "row": line.row,
                "seeds": found.seeds_of(line),
                **{
                    way: {exam: number(found.accuracy(line, [exam], way)) for exam in table.exams}
                    | {"mean": number(found.accuracy(line, table.exams, way))}
                    for way in found.ways
                },
                "spent": asdict(spent) if (spent := results.spent.get((line.system, line.row))) else None,
            }
            for line in table.lines
        ],
        "claims": [
            {
                "ahead": one.claim.ahead.label,
                "behind": one.claim.behind.label,
                "exam": one.claim.exam,
                "way": way,
                "difference": number(one.difference),
                "verdict": one.word,
            }
            for way, own in results.verdicts[table.title].items()
            for one in own
        ],
    }


def number(one: Interval) -> dict[str, float | None]:
    """For JSON, to a hundredth of a point."""
    ends = {"mean": one.mean, "low": one.low, "high": one.high}
    return {name: None if value is None or math.isnan(value) else round(value, 4) for name, value in ends.items()}
