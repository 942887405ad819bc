"""What a result of a comparison cost: every step that it rests on, counted once.

A student rests on its teachers, a fork on what it was forked from, a merge on its branches. Tokens and seconds are
those that the run told, not the plan's bounds. Seconds are of the worker: rollouts of one branch and the update of
another overlap, so they add up to more than the clock showed.

Left out: what is measured (`answers`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from adapters.names import BASE, Ref
from trainer.loop import NATIVE
from trainer.plan.steps import Plan, Step
from trainer.recipe import RolloutConfig
from trainer.reporting.events import Event


@dataclass(frozen=True, slots=True)
class Spent:
    steps: float = 0
    rollouts: float = 0
    generated: float = 0
    """Tokens of completions."""
    scored: float = 0
    """Those that a teacher scored, and the student with it."""
    trained: float = 0
    """Those that an update learnt from: not those of prompts whose completions all got the same."""
    seconds: float = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over(self, count: int) -> "Spent":
        return Spent(*(value / count for value in astuple(self)))


def closure(refs: Iterable[Ref], made: Plan) -> list[Step]:
    """Every step without which these revisions would not be, in no order."""
    steps = {step.makes: step for step in made.steps}
    origins = {Ref(start.branch, 0): Ref.parse(start.origin) for start in made.starts if start.origin != BASE}
    wanted, found = list(refs), dict[Ref, Step]()
    while wanted:
        ref = wanted.pop()
        if ref in origins:
            wanted.append(origins[ref])
        elif ref in steps and ref not in found:
            found[ref] = steps[ref]
            wanted.extend(steps[ref].needs)
    return list(found.values())


def spent_by_step(events: Sequence[Event], amounts: RolloutConfig) -> dict[Ref, Spent]:
    return {Ref(one["branch"], one["step"]): _spent(one, amounts) for one in events if one["kind"] == "step"}


def _spent(event: Event, amounts: RolloutConfig) -> Spent:
    metrics: Mapping[str, Any] = event["metrics"]
    own, (prompts, group_size) = amounts.prompts * amounts.group_size, amounts.opd_batch
    others = prompts * group_size
    found = Spent(steps=1, seconds=sum(event["seconds"].values()))
    for name in (key.removesuffix("/length") for key in metrics if key.endswith("/length")):
        count = own if name == NATIVE else others
        tokens = metrics[f"{name}/length"] * count
        is_taught = f"{name}/delta" in metrics
        learnt = 1 - metrics.get(f"{name}/decided", 0.0) if name == NATIVE else 1
        found += Spent(0, count, tokens, 2 * tokens if is_taught else 0, learnt * tokens)
    return found


def cost_of(refs: Iterable[Ref], made: Plan, spent: Mapping[Ref, Spent]) -> Spent:
    return sum((spent[step.makes] for step in closure(refs, made) if step.makes in spent), Spent())
