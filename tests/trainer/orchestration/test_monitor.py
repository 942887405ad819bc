"""Which revisions are compared, and when."""

from adapters.names import Ref
from tests.faults.recipes import small
from trainer.orchestration.monitor import phase_ends
from trainer.plan.make import make_plan


def test_the_branches_of_a_phase_are_compared_at_its_end() -> None:
    found = phase_ends(make_plan(small()))
    assert [(one.phase, one.step) for one in found] == [("rlvr", 2), ("opd", 3), ("rlvr", 5), ("opd", 6)]
    assert found[1].refs == (Ref("text", 3), Ref("image", 3), Ref("video", 3))


def test_a_student_is_compared_with_the_teachers_that_stand_still() -> None:
    changes = ("method.kind=mopd", "method.topology=pairwise", "method.hub=null", 'method.student="text"')
    found = phase_ends(make_plan(small(*changes, "method.steps=3")))
    assert found[0].refs == (Ref("image", 3), Ref("video", 3))
    assert next(one.refs for one in found if one.phase == "opd") == (Ref("text", 3), Ref("image", 3), Ref("video", 3))


def test_every_moment_has_a_name_of_its_own() -> None:
    found = phase_ends(make_plan(small("method.cycles=5")))
    assert len({one.name for one in found}) == len(found) == 10
