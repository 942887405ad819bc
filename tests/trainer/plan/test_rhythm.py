"""The adaptive rhythm: the rule, what it reads, and the plan that follows it."""

from itertools import pairwise

import pytest

from adapters.names import Ref
from tests.faults.recipes import small
from trainer.evaluation.overlap import Overlaps, lowest_shared
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided, decision, next_rlvr_steps
from trainer.plan.steps import impossible
from trainer.recipe import edges


@pytest.mark.parametrize(
    ("steps", "lowest", "then"),
    [(8, 0.98, 8), (8, 0.97, 8), (8, 0.995, 8), (8, 0.96, 6), (8, 0.996, 9), (4, 0.996, 5), (3, 0.5, 2), (2, 0.5, 1)],
)
def test_steps_go_to_the_other_phase_outside_the_band(steps: int, lowest: float, then: int) -> None:
    assert next_rlvr_steps(steps, 10, lowest) == then


def test_both_phases_keep_a_step() -> None:
    assert next_rlvr_steps(1, 5, 0.0) == 1
    assert next_rlvr_steps(4, 5, 1.0) == 4


def test_only_edges_count_and_only_the_teachers_capability() -> None:
    recipe = small("method.topology=explicit", 'method.edges=["image <- text"]', "method.hub=null")
    names, capabilities = ("text@5", "image@5", "video@5"), ("text", "image", "video")
    table = [[[0.1] * 3 for _ in names] for _ in names]
    table[1][0][0] = 0.95  # image <- text on text
    values = tuple(tuple(tuple(cells) for cells in rows) for rows in table)
    low = (((0.0,) * 3,) * 3,) * 3
    overlaps = Overlaps(names, capabilities, 10, 64, low, low, values)
    taught = edges(recipe.method, tuple(recipe.branches))
    revisions = {name: f"{name}@5" for name in recipe.branches}
    assert lowest_shared(overlaps, revisions, taught, recipe.branches) == 0.95


def test_decisions_are_read_in_order_up_to_the_first_gap() -> None:
    agreed = {decision(1): "2", decision(2): "4", decision(4): "1", "data:text": "x"}
    assert decided(agreed, 3) == (3, 2, 4)
    assert decided({}, 3) == (3,)


def test_a_plan_with_decisions_has_cycles_of_one_length() -> None:
    recipe = small("method.cycles=4", "method.rlvr_steps=3", "method.opd_steps=2")
    plan = make_plan(recipe, (3, 2, 4))
    assert list(impossible(plan)) == []
    of_text = [segment for segment in plan.segments if segment.branch == "text"]
    assert [(segment.kind, segment.first, len(segment.steps)) for segment in of_text] == [
        ("rlvr", 0, 3), ("opd", 3, 2), ("rlvr", 5, 2), ("opd", 7, 3), ("rlvr", 10, 4), ("opd", 14, 1), ("rlvr", 15, 4),
        ("opd", 19, 1),
    ]  # fmt: skip
    assert all(before.first + len(before.steps) == after.first for before, after in pairwise(of_text))
    assert plan.head("text") == make_plan(recipe).head("text") == 20
    assert of_text[3].steps[0].teachers[0].ref == Ref("image", 7)
    assert make_plan(recipe, (3,)) == make_plan(recipe)
