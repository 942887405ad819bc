from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.names import Ref
from trainer.plan.steps import Plan, Segment, Start, Step, Teacher, impossible
from trainer.plan.systems import SYSTEMS
from trainer.recipe import BranchConfig, Edge, MethodConfig, edges

KINDS = [kind for kind in SYSTEMS if kind != "base"]


def make(kind: str, count: int, **settings: Any) -> Plan:
    names = [f"b{number}" for number in range(count)]
    if kind in ("mopd", "pilot", "ages"):
        settings["student"] = "student"
    if kind in ("mopd", "pilot"):
        names.append("student")
    if settings.get("topology") == "hub":
        settings["hub"] = "b0"
    branches = {name: BranchConfig(capabilities=(name,)) for name in names}
    return SYSTEMS[kind](MethodConfig.model_validate({"kind": kind, **settings}), branches)


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(2, 9),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from(["pairwise", "hub", "ring"]),
    st.sampled_from(["step", "phase"]),
    st.sampled_from(["paper", "equal"]),
)
def test_every_plan_can_be_made(
    kind: str, count: int, cycles: int, rlvr_steps: int, opd_steps: int, topology: str, sync: str, rule: str
) -> None:
    plan = make(kind, count, cycles=cycles, rlvr_steps=rlvr_steps, opd_steps=opd_steps, topology=topology, sync=sync,
                rule=rule)  # fmt: skip
    assert list(impossible(plan)) == []
    revisions = [step.makes for step in plan.steps]
    assert len(set(revisions)) == len(revisions)
    there = {Ref(start.branch, 0) for start in plan.starts}
    for segment in plan.segments:  # in the order given, nothing is needed before it is made, but for live teachers
        ahead = {step.makes for beside in plan.segments if beside.steps[0].number == segment.steps[0].number
                 for step in beside.steps}  # fmt: skip
        for step in segment.steps:
            assert set(step.needs) <= there | ahead
            there.add(step.makes)


@pytest.mark.parametrize("count", [2, 3, 16, 256])
@pytest.mark.parametrize("topology", ["hub", "ring"])
def test_hub_and_ring_grow_with_the_branches(topology: str, count: int) -> None:
    plan = make("copd", count, cycles=2, rlvr_steps=3, opd_steps=2, topology=topology)
    steps = list(plan.steps)
    assert len(steps) == count * 2 * 5
    scores = sum(len(step.teachers) for step in steps)
    assert scores == 2 * 2 * (2 * (count - 1) if topology == "hub" else count)


@pytest.mark.parametrize("count", [2, 3, 32])
def test_pairwise_teaches_all_by_all(count: int) -> None:
    plan = make("copd", count, cycles=1, rlvr_steps=1, opd_steps=1, topology="pairwise")
    assert sum(len(step.teachers) for step in plan.steps) == count * (count - 1)


def test_a_live_teacher_ages_with_its_student_a_frozen_with_its_phase() -> None:
    for sync, ages in (("step", [3, 4, 8, 9]), ("phase", [3, 3, 8, 8])):
        plan = make("copd", 3, cycles=2, rlvr_steps=3, opd_steps=2, topology="hub", sync=sync)
        taught = [step for step in plan.steps if step.branch == "b1" and step.teachers]
        assert [step.teachers[0].ref for step in taught] == [Ref("b0", age) for age in ages]
        assert [step.number for step in taught] == [4, 5, 9, 10]


def test_an_edge_that_is_left_out_is_its_ablation() -> None:
    plan = make("copd", 2, cycles=1, rlvr_steps=1, opd_steps=1, topology="explicit", edges=("b0 <- b1",))
    taught = {step.branch: step.teachers for step in plan.steps if step.number == 2}
    assert taught == {"b0": (Teacher(Ref("b1", 1), "b1", 1.0),), "b1": ()}


def test_a_mixed_branch_makes_as_many_steps_for_each_capability() -> None:
    branches = {"mixed": BranchConfig(capabilities=("text", "image", "video"))}
    plan = SYSTEMS["rlvr"](MethodConfig(kind="rlvr", steps=40), branches)
    assert plan.head("mixed") == 120
    assert {step.capabilities for step in plan.steps} == {("text", "image", "video")}


@pytest.mark.parametrize(("rule", "expert", "student"), [("paper", 40, 40 + 48), ("equal", 24, 24 + 48)])
def test_a_static_student_goes_on_from_its_expert(rule: str, expert: int, student: int) -> None:
    """3 branches, S = 40: 8 cycles x 2 OPD steps x 3 branches = 48, and 0.4 x 3 x 40 = 48."""
    plan = make("static-opd", 3, topology="explicit", edges=("b0 <- b2",), rule=rule)
    assert [plan.head(name) for name in ("b0", "b1", "b2")] == [student, expert, expert]
    later = [step for step in plan.steps if step.number > expert]
    assert {step.teachers for step in later} == {(Teacher(Ref("b2", expert), "b2", 1.0),)}
    assert {step.capabilities for step in later} == {()}


def test_mopd_learns_from_all_experts_as_they_ended() -> None:
    plan = make("mopd", 3)
    steps = [step for step in plan.steps if step.branch == "student"]
    assert len(steps) == 48
    assert {tuple(teacher.ref for teacher in step.teachers) for step in steps} == {
        tuple(Ref(f"b{n}", 40) for n in range(3))
    }


def test_the_pilots_students_are_prepared_and_then_listen_to_a_finished_expert() -> None:
    plan = make("pilot", 1, steps=20, temperatures=(0.5, 1.5), cycles=1, opd_steps=3)
    students = {segment.branch for segment in plan.segments} - {"b0"}
    assert students == {"student-b0-t50", "student-b0-t150"}
    for name, temperature in (("student-b0-t50", 0.5), ("student-b0-t150", 1.5)):
        steps = [step for step in plan.steps if step.branch == name]
        assert [step.temperature for step in steps] == [temperature] * 4 + [None] * 3
        assert {teacher.ref for step in steps[4:] for teacher in step.teachers} == {Ref("b0", 20)}
        assert {step.stream for step in steps} == {"student"}
    longer = make("pilot", 1, steps=20, prior_steps=7, cycles=1, opd_steps=3)
    assert Counter(step.branch for step in longer.steps)["student-b0-t70"] == 10


def test_teachers_of_growing_age_have_a_fresh_student_each() -> None:
    plan = make("ages", 2, steps=20, checkpoints=4, cycles=1, opd_steps=3)
    students = Counter(step.branch for step in plan.steps if step.teachers)
    assert students == {f"student-b{n}-{age}": 3 for n in range(2) for age in (5, 10, 15, 20)}
    ends = {segment.steps[-1].number for segment in plan.segments if segment.branch == "b0"}
    assert ends >= {5, 10, 15, 20}


def test_the_control_makes_the_same_steps_without_teachers() -> None:
    taught, control = (list(make(kind, 3, topology="hub", cycles=2).steps) for kind in ("copd", "negative"))
    assert [step.makes for step in taught] == [step.makes for step in control]
    for taught_step, control_step in zip(taught, control, strict=True):
        assert control_step.negative == tuple(teacher.capability for teacher in taught_step.teachers)
        assert control_step.teachers == ()


def test_revisions_that_nothing_makes_are_told() -> None:
    step = Step("text", 2, ("text",), (Teacher(Ref("image", 7), "image", 1.0),))
    plan = Plan((Start("text", "other@3"),), (Segment("opd", (step,)),))
    assert list(impossible(plan)) == [
        "text starts from other@3, which nothing makes",
        "text@2: follows text@0",
        "text@2 needs text@1, which nothing makes",
        "text@2 needs image@7, which nothing makes",
    ]
    assert list(impossible(Plan((Start("text", "other@3"),), ()), [Ref("other", 3)])) == []


def test_edges_keep_their_weights() -> None:
    edge = {"student": "b0", "teacher": "b1", "beta": 0.5}
    method = MethodConfig.model_validate({"kind": "copd", "topology": "explicit", "edges": (edge,)})
    assert edges(method, ("b0", "b1")) == (Edge("b0", "b1", 0.5),)
    plan = SYSTEMS["copd"](method, {name: BranchConfig(capabilities=(name,)) for name in ("b0", "b1")})
    assert {teacher.beta for step in plan.steps for teacher in step.teachers} == {0.5}
