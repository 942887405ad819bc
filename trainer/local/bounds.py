"""Whether the steps of a plan can be made in their time, and whether their records have room: for check and doctor."""

from collections.abc import Iterator
from pathlib import Path

from trainer.doctor.fit import room_row
from trainer.doctor.machine import MachineFact, Status
from trainer.plan.bounds import kept_rollouts, too_long
from trainer.plan.steps import Plan
from trainer.recipe import Recipe


def bound_facts(plan: Plan, recipe: Recipe, runs: Path, *, if_short: Status = "WARN") -> Iterator[MachineFact]:
    """`runs` is where the records will lie."""
    if why := too_long(plan, recipe):
        finding, _, remedy = why.rpartition("; ")
        yield MachineFact("FAIL", "longest step", finding, remedy)
    records = kept_rollouts(plan, recipe)
    there = sum(file.stat().st_size for file in runs.glob("*/rollouts/*/*"))  # of a run that goes on
    remedy = "make room, or set rollouts.keep to fewer steps"
    yield room_row("disk for rollouts", max(0, records.bytes - there), runs, remedy, if_short=if_short)
