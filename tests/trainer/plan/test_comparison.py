from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adapters.names import Ref
from trainer.compare.costs import closure
from trainer.plan.comparison import BUILD, sweep_shares
from trainer.plan.make import make_plan
from trainer.plan.results import planned_results
from trainer.plan.seed_plan import pair_of
from trainer.plan.steps import Plan, impossible
from trainer.plan.systems import checkpoint_ages
from trainer.recipe import ComparisonConfig, Recipe
from trainer.recipe.file import load, run_id

RECIPE = load(Path("recipes/miniature/compare.toml"), ["method.cycles=2"])  # S = 10
EVERYTHING = tuple(BUILD)


def compared(recipe: Recipe = RECIPE, **comparison: Any) -> Plan:
    return make_plan(recipe.model_copy(update={"comparison": ComparisonConfig(**comparison)}))


def steps_of(plan: Plan) -> Counter[str]:
    """How many steps each system has."""
    counts = Counter[str]()
    for segment in plan.segments:
        counts[segment.system] += len(segment.steps)
    return counts


def test_systems_have_the_steps_that_the_papers_rule_gives_them():
    S = 10
    assert steps_of(compared(seeds=1)) == {
        "experts": 3 * S,
        "mixed2": 2 * S,
        "mixed3": 3 * S,
        "copd2": 2 * S,
        "no_image_edge": 2 * S,
        "no_text_edge": 2 * S,
        "copd3": 3 * S,
        "no_teachers": 3 * S,
        "static_v2t": 2 * 4,
        "static_t2v": 2 * 4,
        "mopd": 3 * 4,
    }


def test_every_system_can_be_made_for_several_seeds():
    plan = compared(systems=EVERYTHING, seeds=2, first_seed=3)
    assert list(impossible(plan)) == []
    assert {start.seed for start in plan.starts} == {3, 4}
    assert {step.seed for step in plan.steps} == {3, 4}


def test_a_branch_is_named_after_its_segments_seed_system_and_row():
    plan = compared(systems=EVERYTHING, seeds=2)
    for segment in plan.segments:
        # What has as many tokens as CoPD is a branch of another system at another revision.
        system = {"merge3-tokens": "experts"}.get(segment.system, segment.system.removesuffix("-tokens"))
        assert segment.branch == "-".join([f"s{segment.seed}", system, *filter(None, (segment.row,))])
        assert segment.group == f"s{segment.seed}-{segment.system}"
    rows = {segment.row for segment in plan.segments if segment.system in ("pilot", "ages")}
    assert {"text-2", "image-10", "t40", "t160"} <= rows
    assert {segment.row for segment in plan.segments if segment.system in ("mopd-equal", "static_v2t")} == {""}


@pytest.mark.parametrize(
    "system", ["copd2", "copd3", "pairwise", "no_image_edge", "no_text_edge", "no_teachers", "mixed3"]
)
def test_branches_of_one_capability_draw_what_the_expert_draws(system: str):
    for step in compared(systems=(system,), seeds=1).steps:
        assert step.stream == (step.capabilities[0] if len(step.capabilities) == 1 else "mixed3")


def test_static_students_fork_their_expert_and_listen_to_the_frozen_other():
    plan = compared(systems=("static_v2t", "static_t2v"), seeds=1)
    origins = {start.branch: start.origin for start in plan.starts}
    assert origins["s0-static_v2t"] == "s0-experts-text@10"
    assert origins["s0-static_t2v"] == "s0-experts-image@10"
    for student, teacher in (("s0-static_v2t", "s0-experts-image"), ("s0-static_t2v", "s0-experts-text")):
        steps = [step for step in plan.steps if step.branch == student]
        assert {listened.ref for step in steps for listened in step.teachers} == {Ref(teacher, 10)}
        assert not any(step.capabilities for step in steps)


def test_an_ablation_lacks_exactly_what_one_of_the_pair_teaches():
    plan = compared(systems=("copd2", "no_image_edge", "no_text_edge"), seeds=1)
    edges: dict[str, set[tuple[str, str]]] = {"copd2": set(), "no_image_edge": set(), "no_text_edge": set()}
    for segment in plan.segments:
        for step in segment.steps:
            for teacher in step.teachers:
                edges[segment.system].add((segment.row, teacher.capability))
    assert edges == {
        "copd2": {("text", "image"), ("image", "text")},
        "no_image_edge": {("image", "text")},
        "no_text_edge": {("text", "image")},
    }


def test_the_rule_of_equal_budgets_shortens_experts_that_teach():
    recipe = RECIPE.model_copy(update={"method": RECIPE.method.model_copy(update={"rule": "equal"})})
    plan = compared(recipe, systems=("mopd",), seeds=1)
    assert steps_of(plan)["mopd"] == 12
    assert {teacher.ref.revision for step in plan.steps for teacher in step.teachers} == {6}
    assert Ref("s0-experts-text", 6) in {step.makes for step in plan.steps if step.is_phase_end}


def test_an_equal_student_listens_to_experts_at_an_earlier_revision():
    plan = compared(systems=("mopd", "mopd-equal"), seeds=1)
    ages = {
        name: {teacher.ref.revision for step in plan.steps if step.branch == name for teacher in step.teachers}
        for name in ("s0-mopd", "s0-mopd-equal")
    }
    assert ages == {"s0-mopd": {10}, "s0-mopd-equal": {6}}
    assert steps_of(plan)["experts"] == 30
    assert Ref("s0-experts-text", 6) in {step.makes for step in plan.steps if step.is_phase_end}


def rollouts_of(plan: Plan, refs: tuple[Ref, ...]) -> int:
    """All that a result rests on; teachers' batches have half the completions."""
    steps = closure(refs, plan)
    return sum(24 * bool(step.capabilities) + 12 * len(step.teachers) for step in steps)


def test_systems_of_equal_tokens_have_the_rollouts_of_copd():
    plan = compared(systems=("mopd-tokens", "mixed3-tokens", "merge3-tokens", "copd3"), seeds=1)
    results = {(result.system, result.row): result.refs for result in planned_results(plan)}
    copd = rollouts_of(plan, results["copd3", "merged"])
    assert copd == 3 * 10 * 24 + 4 * 4 * 12
    assert rollouts_of(plan, results["mixed3-tokens", ""]) == copd
    # As near as whole steps come to it: 36 rollouts of a student, 72 of three experts.
    assert rollouts_of(plan, results["mopd-tokens", ""]) == pytest.approx(copd, abs=18)
    assert rollouts_of(plan, results["merge3-tokens", "merged"]) == pytest.approx(copd, abs=36)
    assert {(step.teachers[0].ref.revision) for step in plan.steps if step.branch == "s0-mopd"} == {10}
    assert results["experts", "text"] == (Ref("s0-experts-text", 10),)
    assert ("merge3-tokens", "text") not in results


def test_a_branch_that_is_two_systems_is_trained_once():
    systems = ("mopd", "mopd-tokens", "mixed3-tokens", "mixed3")
    plan = compared(systems=systems, seeds=1)
    assert list(impossible(plan)) == []
    steps = Counter(step.makes for step in plan.steps)
    assert set(steps.values()) == {1}
    refs = {result.system: result.refs for result in planned_results(plan)}
    assert refs["mopd-tokens"] == (Ref("s0-mopd", 5),)
    assert refs["mopd"] == (Ref("s0-mopd", 12),)
    assert refs["mixed3"] == (Ref("s0-mixed3", 30),)
    assert refs["mixed3-tokens"] == (Ref("s0-mixed3", 38),)
    ends = {step.makes for step in plan.steps if step.is_phase_end}
    assert {ref for (ref,) in (refs[system] for system in systems)} <= ends


def test_students_and_their_one_teacher_as_they_were_are_results():
    def results_of(system: str) -> dict[tuple[str, str], tuple[Ref, ...]]:
        plan = compared(systems=(system,), seeds=1)
        return {(result.system, result.row): result.refs for result in planned_results(plan)}

    refs = results_of("ages")
    for name in ("text", "image", "video"):
        for age in checkpoint_ages(RECIPE.method):
            assert ("ages", f"{name}-{age}") in refs
            assert refs["experts", f"{name}@{age}"] == (Ref(f"s0-experts-{name}", age),)
    refs = results_of("pilot")
    for row in ("t40", "t70", "t100", "t130", "t160"):
        assert refs["pilot", f"{row}@2"] == (Ref(f"s0-pilot-{row}", 2),)
        assert refs["pilot", row] == (Ref(f"s0-pilot-{row}", 6),)
    assert refs["experts", "image@10"] == (Ref("s0-experts-image", 10),)
    assert ("experts", "video") not in refs


def test_the_pilots_students_differ_by_temperature_and_draw_alike():
    plan = compared(systems=("pilot",), seeds=1)
    steps: dict[str, list[tuple[Any, ...]]] = {}
    for segment in plan.segments:
        if segment.system == "pilot":
            steps.setdefault(segment.row, []).extend(
                (step.number, step.capabilities, step.teachers, step.stream) for step in segment.steps
            )
    first, *rest = steps.values()
    assert all(row == first for row in rest)
    assert [capabilities for _, capabilities, _, _ in first] == [("text",)] * 2 + [()] * 4
    assert {teacher.ref for _, _, teachers, _ in first for teacher in teachers} == {Ref("s0-experts-image", 10)}
    temperatures = {segment.row: {step.temperature for step in segment.steps} for segment in plan.segments[::-1]}
    assert [temperatures[row] for row in ("t40", "t100", "t160", "image")] == [{0.4}, {1.0}, {1.6}, {None}]


def test_the_hub_and_the_spokes_teach_each_other_and_pairwise_all_do():
    def teachers(system: str) -> dict[str, list[str]]:
        plan = compared(systems=(system,), seeds=1)
        steps = [(segment.row, step) for segment in plan.segments for step in segment.steps if step.number == 10]
        return {row: [teacher.capability for teacher in step.teachers] for row, step in steps if step.teachers}

    assert teachers("copd3") == {"text": ["image", "video"], "image": ["text"], "video": ["text"]}
    assert teachers("pairwise") == {"text": ["image", "video"], "image": ["text", "video"], "video": ["text", "image"]}


def test_results_are_branches_at_their_end_and_merges():
    results = {(result.system, result.row): result for result in planned_results(compared(seeds=1))}
    assert results["copd3", "merged"].refs == tuple(Ref(f"s0-copd3-{name}", 10) for name in ("text", "image", "video"))
    assert results["merge2", "merged"].refs == tuple(Ref(f"s0-experts-{name}", 10) for name in ("text", "image"))
    assert results["mixed3", ""].model == "s0-mixed3-30"
    assert ("mopd", "merged") not in results
    assert len({result.model for result in results.values()}) == len(results)
    assert results["merge2", "merged"].capabilities == results["copd2", "merged"].capabilities == ("text", "image")
    assert results["merge3", "merged"].capabilities == ("text", "image", "video")


@pytest.mark.parametrize(
    ("systems", "third"),
    [
        (("mixed2", "static_v2t", "static_t2v", "copd2", "no_image_edge", "no_text_edge"), False),
        (("mixed2", "mopd"), True),
        ((), True),
    ],
)
def test_beside_systems_of_the_pair_alone_there_is_no_third_expert(systems: tuple[str, ...], third: bool):
    rows = {(result.system, result.row) for result in planned_results(compared(systems=systems, seeds=1))}
    assert {("experts", "text"), ("experts", "image"), ("merge2", "merged")} <= rows
    assert {("experts", "video"), ("merge3", "merged")}.isdisjoint(rows) is not third


def test_more_seeds_and_more_systems_are_the_same_run():
    def id_of(**comparison: Any) -> str:
        return run_id(RECIPE.model_copy(update={"comparison": ComparisonConfig(**comparison)}))

    assert id_of(seeds=1) == id_of(seeds=3, first_seed=2)
    assert id_of(systems=("mopd",)) == id_of()
    assert id_of() != run_id(RECIPE.model_copy(update={"seed": 1, "comparison": ComparisonConfig()}))


def test_the_sweep_has_every_share_but_the_methods():
    plan = compared(systems=("sweep",), seeds=1)
    shares = sweep_shares(RECIPE.method)
    assert shares == {"r1o4": (1, 4), "r2o3": (2, 3), "r4o1": (4, 1)}
    for system, (rlvr_steps, _) in shares.items():
        first = next(segment for segment in plan.segments if segment.system == system)
        assert (first.kind, len(first.steps)) == ("rlvr", rlvr_steps)


def test_the_pair_is_the_hub_and_the_first_other():
    assert pair_of(RECIPE.method, ("image", "video", "text")) == ("text", "image")
    assert pair_of(RECIPE.method.model_copy(update={"hub": None}), ("a", "b")) == ("a", "b")
