"""Which revisions are compared, and when."""

from adapters.names import Ref
from tests.faults.recipes import small
from trainer.orchestration.monitor import phase_ends
from trainer.plan.make import make_plan


def test_the_branches_of_a_phase_are_compared_at_its_end() -> None:
    ends = phase_ends(make_plan(small()))
    assert [(end.phase, end.step) for end in ends] == [("rlvr", 2), ("opd", 3), ("rlvr", 5), ("opd", 6)]
    assert ends[1].refs == (Ref("text", 3), Ref("image", 3), Ref("video", 3))


def test_a_student_is_compared_with_the_teachers_that_stand_still() -> None:
    changes = ("method.kind=mopd", "method.topology=pairwise", "method.hub=null", 'method.student="text"')
    ends = phase_ends(make_plan(small(*changes, "method.steps=3")))
    assert ends[0].refs == (Ref("image", 3), Ref("video", 3))
    assert next(end.refs for end in ends if end.phase == "opd") == (Ref("text", 3), Ref("image", 3), Ref("video", 3))


def test_the_pilots_students_are_compared_with_their_expert_before_they_listen() -> None:
    changes = ("method.kind=pilot", "method.topology=pairwise", "method.hub=null", 'method.student="text"')
    plan = make_plan(small(*changes, "method.steps=5", "method.temperatures=[0.5, 1.5]"))
    before = next(end for end in phase_ends(plan) if Ref("text-image-t50", 1) in end.refs)
    students = [Ref(f"text-{name}-{row}", 1) for name in ("image", "video") for row in ("t50", "t150")]
    assert before.refs == (*students, Ref("image", 5), Ref("video", 5))


def test_every_phase_end_has_a_name_of_its_own() -> None:
    ends = phase_ends(make_plan(small("method.cycles=5")))
    assert len({end.name for end in ends}) == len(ends) == 10
