from collections import Counter
from pathlib import Path

import pytest

from adapters.names import Ref
from trainer.plan.comparison import BUILD, pair_of, planned_results
from trainer.plan.make import make_plan
from trainer.plan.steps import Plan, impossible
from trainer.plan.systems import checkpoint_ages
from trainer.recipe import ComparisonConfig, Recipe
from trainer.recipe.file import load, run_id

RECIPE = load(Path("recipes/miniature/compare.toml"), ["method.cycles=2"])  # S = 10
EVERYTHING = tuple(BUILD)


def compared(recipe: Recipe = RECIPE, **asked) -> Plan:
    return make_plan(recipe.model_copy(update={"comparison": ComparisonConfig(**asked)}))


def steps_of(made: Plan) -> Counter[str]:
    return Counter(
        {s: sum(len(g.steps) for g in made.segments if g.system == s) for s in {g.system for g in made.segments}}
    )


def test_systems_have_the_steps_that_the_papers_rule_gives_them():
    made = compared(seeds=1)
    S = 10
    assert steps_of(made) == {
        "s0-x": 3 * S, "s0-mixed2": 2 * S, "s0-mixed3": 3 * S, "s0-copd2": 2 * S, "s0-noi": 2 * S, "s0-not": 2 * S,
        "s0-copd3": 3 * S, "s0-neg": 3 * S, "s0-vt": 2 * 4, "s0-tv": 2 * 4, "s0-mopd": 3 * 4,
    }  # fmt: skip


def test_every_step_can_be_made_with_everything_asked_for_and_several_seeds():
    made = compared(systems=EVERYTHING, seeds=2, first_seed=3)
    assert list(impossible(made)) == []
    assert {one.seed for one in made.starts} == {3, 4}
    assert {step.seed for step in made.steps} == {3, 4}


@pytest.mark.parametrize("system", ["copd2", "copd3", "pairwise", "noi", "not", "neg", "mixed3"])
def test_branches_of_one_capability_draw_what_the_expert_draws(system):
    made = compared(systems=(system,), seeds=1)
    for step in made.steps:
        assert step.stream == (step.capabilities[0] if len(step.capabilities) == 1 else "mixed3")


def test_static_students_go_on_from_the_expert_and_listen_to_the_other_as_it_was():
    made = compared(systems=("vt", "tv"), seeds=1)
    origins = {one.branch: one.origin for one in made.starts}
    assert origins["s0-vt"] == "s0-x-text@10"
    assert origins["s0-tv"] == "s0-x-image@10"
    for system, teacher in (("s0-vt", "s0-x-image"), ("s0-tv", "s0-x-text")):
        own = [step for step in made.steps if step.branch == system]
        assert {one.ref for step in own for one in step.teachers} == {Ref(teacher, 10)}
        assert not any(step.capabilities for step in own)


def test_an_ablation_lacks_exactly_what_one_of_the_pair_teaches():
    made = compared(systems=("copd2", "noi", "not"), seeds=1)
    found = {
        system: {
            (step.branch.rsplit("-", 1)[1], one.capability)
            for segment in made.segments
            if segment.system == f"s0-{system}"
            for step in segment.steps
            for one in step.teachers
        }
        for system in ("copd2", "noi", "not")
    }
    assert found == {
        "copd2": {("text", "image"), ("image", "text")},
        "noi": {("image", "text")},
        "not": {("text", "image")},
    }


def test_the_rule_of_equal_budgets_shortens_experts_that_teach():
    recipe = RECIPE.model_copy(update={"method": RECIPE.method.model_copy(update={"rule": "equal"})})
    made = compared(recipe, systems=("mopd",), seeds=1)
    assert steps_of(made)["s0-mopd"] == 12
    assert {one.ref.revision for step in made.steps for one in step.teachers} == {6}
    assert Ref("s0-x-text", 6) in {step.makes for step in made.steps if step.is_phase_end}


def test_an_equal_student_listens_to_experts_as_they_were_while_they_go_on():
    made = compared(systems=("mopd", "mopd-equal"), seeds=1)
    ages = {
        name: {one.ref.revision for step in made.steps if step.branch == name for one in step.teachers}
        for name in ("s0-mopd", "s0-mopd-equal")
    }
    assert ages == {"s0-mopd": {10}, "s0-mopd-equal": {6}}
    assert steps_of(made)["s0-x"] == 30
    assert Ref("s0-x-text", 6) in {step.makes for step in made.steps if step.is_phase_end}


def test_the_pilot_has_a_fresh_student_for_each_checkpoint_and_its_teachers_are_results_too():
    made = compared(systems=("pilot",), seeds=1)
    ages = checkpoint_ages(RECIPE.method)
    found = list(planned_results(made))
    for name in ("text", "image", "video"):
        for age in ages:
            assert ("pilot", f"{name}-{age}") in {(one.system, one.row) for one in found}
            assert [one.refs for one in found if (one.system, one.row) == ("x", f"{name}@{age}")] == [
                (Ref(f"s0-x-{name}", age),)
            ]


def test_every_branch_is_taught_by_the_hub_and_the_spokes_or_by_each_other():
    def teachers(system: str) -> dict[str, list[str]]:
        steps = [step for step in compared(systems=(system,), seeds=1).steps if step.teachers and step.number == 10]
        return {step.branch.rsplit("-")[-1]: [one.capability for one in step.teachers] for step in steps}

    assert teachers("copd3") == {"text": ["image", "video"], "image": ["text"], "video": ["text"]}
    assert teachers("pairwise") == {"text": ["image", "video"], "image": ["text", "video"], "video": ["text", "image"]}


def test_results_are_branches_at_their_end_and_merges():
    found = {(one.system, one.row): one for one in planned_results(compared(seeds=1))}
    assert found["copd3", "merged"].refs == tuple(Ref(f"s0-copd3-{name}", 10) for name in ("text", "image", "video"))
    assert found["merge2", "merged"].refs == tuple(Ref(f"s0-x-{name}", 10) for name in ("text", "image"))
    assert found["mixed3", ""].model == "s0-mixed3-30"
    assert ("mopd", "merged") not in found
    assert len({one.model for one in found.values()}) == len(found)
    assert found["merge2", "merged"].capabilities == found["copd2", "merged"].capabilities == ["text", "image"]
    assert found["merge3", "merged"].capabilities == ["text", "image", "video"]


@pytest.mark.parametrize(
    ("systems", "third"),
    [(("mixed2", "vt", "tv", "copd2", "noi", "not"), False), (("mixed2", "mopd"), True), ((), True)],
)
def test_beside_systems_of_the_pair_alone_there_is_no_third_expert(systems, third):
    found = {(one.system, one.row) for one in planned_results(compared(systems=systems, seeds=1))}
    assert {("x", "text"), ("x", "image"), ("merge2", "merged")} <= found
    assert {("x", "video"), ("merge3", "merged")}.isdisjoint(found) is not third


def test_more_seeds_and_more_systems_are_the_same_run():
    def of(**asked) -> str:
        return run_id(RECIPE.model_copy(update={"comparison": ComparisonConfig(**asked)}))

    assert of(seeds=1) == of(seeds=3, first_seed=2)
    assert of(systems=("mopd",)) == of()
    assert of() != run_id(RECIPE.model_copy(update={"seed": 1, "comparison": ComparisonConfig()}))


def test_the_pair_is_the_hub_and_the_first_other():
    assert pair_of(RECIPE.method, ("image", "video", "text")) == ("text", "image")
    assert pair_of(RECIPE.method.model_copy(update={"hub": None}), ("a", "b")) == ("a", "b")
