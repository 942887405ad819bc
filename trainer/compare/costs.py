"""What a result of a comparison cost: every step that it rests on, counted once.

A student rests on its teachers, a fork on what it was forked from, a merge on its branches. Tokens and seconds are
those that the run reported, not the plan's bounds. Seconds are of the worker: rollouts of one branch and the update of
another overlap, so they add up to more than the clock showed.

Left out: what is measured (`answers`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapters.names import BASE, Ref
from trainer.loop import NATIVE
from trainer.plan.cost import Cost
from trainer.plan.steps import Plan, Step
from trainer.recipe import RolloutConfig
from trainer.reporting.events import Event


def closure(refs: Iterable[Ref], plan: Plan) -> list[Step]:
    """Every step without which these revisions would not be, in no order."""
    steps = {step.makes: step for step in plan.steps}
    origins = {Ref(start.branch, 0): Ref.parse(start.origin) for start in plan.starts if start.origin != BASE}
    # A walk backwards over what each step reads: the branch's revision before, and its teachers' revisions.
    needed = dict[Ref, Step]()
    pending = list(refs)
    while pending:
        ref = pending.pop()
        if ref in origins:
            pending.append(origins[ref])
        elif ref in steps and ref not in needed:  # revision 0 of a branch that starts at the base costs nothing
            needed[ref] = steps[ref]
            pending.extend(steps[ref].needs)
    return list(needed.values())


def cost_by_step(events: Sequence[Event], amounts: RolloutConfig) -> dict[Ref, Cost]:
    native_count, (prompts, group_size) = amounts.prompts * amounts.group_size, amounts.opd_batch
    costs: dict[Ref, Cost] = {}
    for event in events:
        if event["kind"] != "step":
            continue
        metrics: Mapping[str, Any] = event["metrics"]
        cost = Cost(steps=1, seconds=sum(event["seconds"].values()))
        for term in (key.removesuffix("/length") for key in metrics if key.endswith("/length")):
            count = native_count if term == NATIVE else prompts * group_size
            tokens = metrics[f"{term}/length"] * count  # the metric is a mean over completions
            # Teacher and student score each token once. The control's terms have no delta: nobody scores them.
            scored = 2 * tokens if f"{term}/delta" in metrics else 0
            # Prompts whose completions all got the same reward leave the update; teachers have a word on every token.
            trained = (1 - metrics.get(f"{term}/decided", 0.0)) * tokens if term == NATIVE else tokens
            cost += Cost(0, count, tokens, scored, trained)
        # A step that was made twice, after an interruption, counts once: the later event stands.
        costs[Ref(event["branch"], event["step"])] = cost
    return costs


def cost_of(refs: Iterable[Ref], plan: Plan, cost_by_step: Mapping[Ref, Cost]) -> Cost:
    """The sum over the steps that were made so far."""
    return sum((cost_by_step[step.makes] for step in closure(refs, plan) if step.makes in cost_by_step), Cost())
