"""What of a comparison's plan is examined: branches at their ends, merges, and teachers as they were when they taught.

Left out: the steps (`comparison`) and the answers (`trainer.compare`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from adapters.names import Ref
from trainer.plan.comparison import EXPERTS, MERGED, ONE_TEACHER, PAIRED, SINGLE_BRANCH_SYSTEMS
from trainer.plan.steps import Plan, Segment


@dataclass(frozen=True, slots=True)
class Result:
    """What is examined: a branch at its end, or the merge of several."""

    system: str
    row: str
    """A capability's name, `merged`, or empty where the system is one branch."""
    seed: int
    refs: tuple[Ref, ...]
    capabilities: tuple[str, ...]
    """Whose rewards its branches learnt from; none for a student that only listened."""

    @property
    def is_merge(self) -> bool:
        return len(self.refs) > 1

    @property
    def model(self) -> str:
        """The name that the service answers it under."""
        if self.is_merge:
            return f"s{self.seed}-{self.system}-{MERGED}"
        # As an adapter outside of the store, where `@` is in no name.
        return f"{self.refs[0].branch}-{self.refs[0].revision}"


def planned_results(plan: Plan) -> Iterator[Result]:
    """The results of a plan of `comparison`: in its order, seed by seed. Of students of one teacher, it and they too as
    they were before."""
    # The last segment of a branch in its system stands for it: row and capabilities are the same in all of them.
    groups: dict[str, dict[str, Segment]] = {}
    for segment in plan.segments:
        groups.setdefault(segment.group, {})[segment.branch] = segment
    lesson_of = lessons(plan.segments)
    systems = {segment.system for segment in plan.segments}
    for branches in groups.values():
        heads = [_result(segment, segment.steps[-1].number) for segment in branches.values()]
        system = heads[0].system
        if system == "merge3-tokens":  # its branches alone are experts that nothing is compared with
            yield _merge(system, heads)
            continue
        yield from heads
        if system not in SINGLE_BRANCH_SYSTEMS:
            yield _merge(system, heads)
        yield from _as_they_were(branches, lesson_of)
        if system == EXPERTS:
            # Nothing stands beside the pair's merge where no system of the pair is asked for.
            if len(heads) == 2 or systems == {EXPERTS} or PAIRED & systems:
                yield _merge("merge2", heads[:2])
            if len(heads) > 2:
                yield _merge("merge3", heads)


def lessons(segments: Iterable[Segment]) -> dict[str, Segment]:
    """The first segment in which a student of one teacher listens, by branch."""
    first: dict[str, Segment] = {}
    for segment in segments:
        if segment.system in ONE_TEACHER and segment.steps[0].teachers:
            first.setdefault(segment.branch, segment)
    return first


def _as_they_were(branches: Mapping[str, Segment], lesson_of: Mapping[str, Segment]) -> Iterator[Result]:
    """Revisions of students and their teachers, as they were when a lesson began: what a student gains is read against
    what both knew. One that began as the base is none: the base is examined anyway."""
    teachers = (teacher.ref for lesson in lesson_of.values() for teacher in lesson.steps[0].teachers)
    students = (Ref(name, lesson.first) for name, lesson in lesson_of.items() if lesson.first > 0)
    for ref in dict.fromkeys((*teachers, *students)):
        if ref.branch in branches:
            assert ref.revision is not None
            result = _result(branches[ref.branch], ref.revision)
            yield replace(result, row=f"{result.row}@{ref.revision}")


def _result(segment: Segment, revision: int) -> Result:
    assert segment.seed is not None, "every branch of a comparison has its seed"
    refs = (Ref(segment.branch, revision),)
    return Result(segment.system, segment.row, segment.seed, refs, segment.steps[0].capabilities)


def _merge(system: str, branches: Sequence[Result]) -> Result:
    refs = tuple(ref for branch in branches for ref in branch.refs)
    capabilities = tuple(name for branch in branches for name in branch.capabilities)
    return Result(system, MERGED, branches[0].seed, refs, capabilities)
