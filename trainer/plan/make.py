"""The plan of a recipe: of the system that it names, or of a comparison of several.

Left out: how each system's steps follow each other (`systems`, `comparison`).
"""

from collections.abc import Sequence
from dataclasses import replace

from trainer.plan.comparison import comparison
from trainer.plan.steps import Plan
from trainer.plan.systems import SYSTEMS, copd
from trainer.recipe import Recipe


def make_plan(recipe: Recipe, rhythm: Sequence[int] = ()) -> Plan:
    """Every step of a run. `rhythm`: the RLVR steps of the cycles that are decided (`trainer.plan.rhythm`)."""
    method, branches = recipe.method, recipe.branches
    if recipe.comparison is not None:
        plan = comparison(method, tuple(recipe.capabilities), recipe.comparison, recipe.rollout)
    elif rhythm:
        plan = copd(method, branches, rhythm)
    else:
        plan = SYSTEMS[method.kind](method, branches)
    # What a segment's last step makes is never retired: it may be measured and taught from much later.
    ended = [
        replace(segment, steps=(*segment.steps[:-1], replace(segment.steps[-1], is_phase_end=True)))
        for segment in plan.segments
    ]
    return replace(plan, segments=tuple(ended))
