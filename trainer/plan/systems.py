"""The systems that can be compared, each as a small function from a recipe's method to a plan.

    base        nothing
    rlvr        each branch on its own data: experts; a branch with several capabilities is mixed RLVR
    static-opd  experts first; then each edge's student learns from its teacher as it is
    mopd        experts first; then a fresh student learns from all of them
    copd        cycles of RLVR and of mutual distillation, all branches together
    pilot       experts first; then a fresh student for each of their checkpoints
    negative    copd's steps without teachers: unlikely tokens are pushed down instead

S is the steps of one expert. `rule = "paper"`: experts S, mixed K S, then as many distillation steps as CoPD has in all
branches. `rule = "equal"`: experts 0.6 S, then 0.4 K S. Nothing but this module knows which system runs.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from adapters.names import Ref
from trainer.plan.steps import Plan, Segment, Start, Step, Teacher
from trainer.recipe import BranchConfig, Edge, MethodConfig, edges

Branches = Mapping[str, BranchConfig]


def base(method: MethodConfig, branches: Branches) -> Plan:
    return Plan((), ())


def rlvr(method: MethodConfig, branches: Branches) -> Plan:
    """As many steps for each capability that a branch has."""
    counts = {name: method.expert_steps * len(branch.capabilities) for name, branch in branches.items()}
    return Plan(_starts(branches), tuple(alone(method, branches, counts)))


def copd(method: MethodConfig, branches: Branches, rhythm: Sequence[int] = ()) -> Plan:
    """All branches step together: a teacher is as old as its student. What is not decided yet goes on as it was."""
    before = [*rhythm] or [method.rlvr_steps]
    rlvr_steps = before + before[-1:] * (method.cycles - len(before))

    def segment(name: str, first: int, count: int) -> Segment:
        mine = [edge for edge in edges(method, tuple(branches)) if edge.student == name]
        steps = [
            Step(name, number, branches[name].capabilities, _teachers(mine, branches, _age(method, first, number)))
            for number in _numbers(first, count)
        ]
        return Segment("opd", tuple(steps))

    return _in_cycles(method, branches, rlvr_steps, segment)


def negative(method: MethodConfig, branches: Branches) -> Plan:
    def segment(name: str, first: int, count: int) -> Segment:
        mine = [edge.teacher for edge in edges(method, tuple(branches)) if edge.student == name]
        pushed = tuple(capability for teacher in mine for capability in branches[teacher].capabilities)
        steps = [Step(name, number, branches[name].capabilities, negative=pushed) for number in _numbers(first, count)]
        return Segment("negative", tuple(steps))

    return _in_cycles(method, branches, [method.rlvr_steps] * method.cycles, segment)


def static_opd(method: MethodConfig, branches: Branches) -> Plan:
    """A student goes on from its own expert."""
    experts = expert_steps(method)
    segments = list(alone(method, branches, dict.fromkeys(branches, experts)))
    taught = edges(method, tuple(branches))
    for name in branches:
        mine = [edge for edge in taught if edge.student == name]
        if mine:
            segments += distilled(method, name, experts, later_steps(method, len(branches)), mine, branches, experts)
    return Plan(_starts(branches), tuple(segments))


def mopd(method: MethodConfig, branches: Branches) -> Plan:
    assert method.student is not None
    experts = expert_steps(method)
    taught = {name: branch for name, branch in branches.items() if name != method.student}
    segments = list(alone(method, taught, dict.fromkeys(taught, experts)))
    mine, steps = edges(method, tuple(branches)), later_steps(method, len(taught))
    segments += distilled(method, method.student, 0, steps, mine, branches, experts)
    return Plan(_starts(branches), tuple(segments))


def pilot(method: MethodConfig, branches: Branches) -> Plan:
    """Students are called STUDENT-EXPERT-REVISION; all make the same steps from the base."""
    taught = {name: branch for name, branch in branches.items() if name != method.student}
    total, steps = method.expert_steps, method.cycles * method.opd_steps
    ages = checkpoint_ages(method)
    segments = list(alone(method, taught, dict.fromkeys(taught, total), ages))
    students: list[str] = []
    for edge in edges(method, tuple(branches)):
        for age in ages:
            students.append(f"{method.student}-{edge.teacher}-{age}")
            mine = [replace(edge, student=students[-1])]
            segments += distilled(method, students[-1], 0, steps, mine, branches, age)
    return Plan((*_starts(taught), *_starts(dict.fromkeys(students))), tuple(segments))


SYSTEMS: Mapping[str, Callable[[MethodConfig, Branches], Plan]] = {
    "base": base,
    "rlvr": rlvr,
    "static-opd": static_opd,
    "mopd": mopd,
    "copd": copd,
    "pilot": pilot,
    "negative": negative,
}


def _starts(branches: Mapping[str, BranchConfig | None]) -> tuple[Start, ...]:
    return tuple(Start(name, branch.init if branch else "base") for name, branch in branches.items())


def _numbers(first: int, count: int) -> range:
    return range(first + 1, first + count + 1)


def _in_cycles(
    method: MethodConfig, branches: Branches, rlvr_steps: Sequence[int], second: Callable[[str, int, int], Segment]
) -> Plan:
    """Both phases of every cycle, each for all branches before the next begins. All cycles have the same length."""
    length = method.rlvr_steps + method.opd_steps
    segments: list[Segment] = []
    for cycle, own_steps in enumerate(rlvr_steps):
        first = cycle * length
        if own_steps:
            segments += [_own(name, branches[name], first, own_steps) for name in branches]
        segments += [second(name, first + own_steps, length - own_steps) for name in branches]
    return Plan(_starts(branches), tuple(segments))


def _own(name: str, branch: BranchConfig, first: int, count: int) -> Segment:
    return Segment("rlvr", tuple(Step(name, number, branch.capabilities) for number in _numbers(first, count)))


def alone(
    method: MethodConfig, branches: Branches, counts: Mapping[str, int], ends: Collection[int] = ()
) -> Iterator[Segment]:
    """Experts, in segments of a cycle's length, turn by turn; a new segment begins after each of `ends`."""
    length = max(1, method.rlvr_steps + method.opd_steps)
    for first in range(0, max(counts.values(), default=0), length):
        for name, branch in branches.items():
            begin, last = first, min(first + length, counts[name])
            for end in [*sorted(end for end in ends if first < end < last), last]:
                if end > begin:
                    yield _own(name, branch, begin, end - begin)
                    begin = end


def distilled(
    method: MethodConfig, student: str, first: int, count: int, mine: Sequence[Edge], branches: Branches, age: int
) -> Iterator[Segment]:
    """A student that only listens, to teachers that stay what they are."""
    length = max(1, method.rlvr_steps + method.opd_steps)
    teachers = _teachers(mine, branches, age)
    for begin in range(first, first + count, length):
        numbers = _numbers(begin, min(length, first + count - begin))
        yield Segment("opd", tuple(Step(student, number, teachers=teachers) for number in numbers))


def _teachers(mine: Sequence[Edge], branches: Branches, age: int) -> tuple[Teacher, ...]:
    return tuple(
        Teacher(Ref(edge.teacher, age), capability, edge.beta)
        for edge in mine
        for capability in branches[edge.teacher].capabilities
    )


def _age(method: MethodConfig, phase_start: int, number: int) -> int:
    """Of a teacher: as it was before this step, or before this phase."""
    return number - 1 if method.sync == "step" else phase_start


def expert_steps(method: MethodConfig) -> int:
    return method.expert_steps if method.rule == "paper" else max(1, round(0.6 * method.expert_steps))


def checkpoint_ages(method: MethodConfig) -> list[int]:
    """Of the experts that teach in the pilot."""
    total, count = method.expert_steps, method.checkpoints
    return sorted({max(1, total * (number + 1) // count) for number in range(count)})


def later_steps(method: MethodConfig, count: int) -> int:
    """Of distillation after so many experts."""
    if method.rule == "paper":
        return method.cycles * method.opd_steps * count
    return max(1, round(0.4 * method.expert_steps * count))
