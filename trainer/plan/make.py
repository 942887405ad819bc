"""The plan of a recipe: of the system that it names, or of a comparison of several.

Left out: how each system's steps follow each other (`systems`, `comparison`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.plan.comparison import comparison
from trainer.plan.steps import Plan, Segment
from trainer.plan.systems import SYSTEMS, copd
from trainer.recipe import Recipe


def make_plan(recipe: Recipe, rhythm: Sequence[int] = ()) -> Plan:
    """Every step of a run. `rhythm`: of the cycles that were decided on so far, their RLVR steps (`rhythm`)."""
    method, branches = recipe.method, recipe.branches
    if recipe.comparison is not None:
        made = comparison(method, tuple(recipe.capabilities), recipe.comparison)
    elif rhythm:
        made = copd(method, branches, rhythm)
    else:
        made = SYSTEMS[method.kind](method, branches)
    return replace(made, segments=tuple(_with_ends(made.segments)))


def _with_ends(segments: Sequence[Segment]) -> Iterator[Segment]:
    """The last step of each segment marked: what is made there is kept."""
    for segment in segments:
        yield replace(segment, steps=(*segment.steps[:-1], replace(segment.steps[-1], is_phase_end=True)))
