"""The systems that can be compared, each as a small function from a recipe's method to a plan.

    base        nothing
    rlvr        each branch on its own data: experts; a branch with several capabilities is mixed RLVR
    static-opd  experts first; then each edge's student learns from its teacher as it is
    mopd        experts first; then a fresh student learns from all of them
    copd        cycles of RLVR and of mutual distillation, all branches together
    pilot       experts first; then students of each, which were prepared at different temperatures
    ages        experts first; then a fresh student for each of their checkpoints
    negative    copd's steps without teachers: unlikely tokens are pushed down instead

Steps are matched so that a table is fair. Let S be the steps of one expert alone, and K how many experts there are:

    S = cycles x (rlvr_steps + opd_steps)            or `method.steps`
                      experts       then the student                 mixed RLVR     CoPD
    rule = "paper"    S each        K x cycles x opd_steps           K S            S a branch, K S in all
    rule = "equal"    0.6 S each    0.4 K S                          K S            S a branch, K S in all

So by the equal rule every system has K S steps in all. By the paper's a student comes on top of whole experts, with as
many steps as CoPD has of distillation in all branches. Nothing but this module knows which system runs.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from adapters.names import Ref
from trainer.plan.steps import Plan, Segment, Start, Step, Teacher
from trainer.recipe import BranchConfig, Edge, MethodConfig, edges

Branches = Mapping[str, BranchConfig]


# ---- how many steps ----


def expert_steps(method: MethodConfig) -> int:
    """The steps of an expert that a student learns from afterwards: S, or 0.6 S."""
    return method.expert_steps if method.rule == "paper" else max(1, round(0.6 * method.expert_steps))


def later_steps(method: MethodConfig, count: int) -> int:
    """The steps of a student of K = `count` experts: K x cycles x opd_steps, or 0.4 K S."""
    if method.rule == "paper":
        return method.cycles * method.opd_steps * count
    return max(1, round(0.4 * method.expert_steps * count))


def checkpoint_ages(method: MethodConfig) -> list[int]:
    """The revisions of each expert that teach in `ages`: S/n, 2 S/n, ..., S for n checkpoints."""
    total, count = method.expert_steps, method.checkpoints
    # More checkpoints than steps fall together, and the base teaches nothing.
    return sorted({max(1, total * (number + 1) // count) for number in range(count)})


def prior_steps(method: MethodConfig) -> int:
    """The steps that prepare a student of the pilot."""
    return method.prior_steps or max(1, method.expert_steps // 5)


# ---- the systems ----


def base(method: MethodConfig, branches: Branches) -> Plan:
    # The paper's first row: the model before any training.
    return Plan((), ())


def rlvr(method: MethodConfig, branches: Branches) -> Plan:
    # The paper's experts have one capability each. Its mixed RLVR is one branch on the union of all data: K S steps.
    # S steps for each capability, so that mixing costs no capability a step.
    counts = {name: method.expert_steps * len(branch.capabilities) for name, branch in branches.items()}
    return Plan(_starts(branches), tuple(alone(method, branches, counts)))


def static_opd(method: MethodConfig, branches: Branches) -> Plan:
    # The paper's OPD V->T and T->V: finished experts, of which one goes on and the other stays as it is and teaches.
    experts = expert_steps(method)
    segments = list(alone(method, branches, dict.fromkeys(branches, experts)))
    for name in branches:
        teaching = _edges_of(name, method, branches)
        if teaching:
            steps = later_steps(method, len(branches))
            segments += distilled(method, name, experts, steps, teaching, branches, experts)
    return Plan(_starts(branches), tuple(segments))


def mopd(method: MethodConfig, branches: Branches) -> Plan:
    # The paper's MOPD: a student that begins at the base and distils every finished expert on that expert's data.
    assert method.student is not None
    experts = {name: branch for name, branch in branches.items() if name != method.student}
    age = expert_steps(method)
    segments = list(alone(method, experts, dict.fromkeys(experts, age)))
    teaching, steps = edges(method, tuple(branches)), later_steps(method, len(experts))
    segments += distilled(method, method.student, 0, steps, teaching, branches, age)
    return Plan(_starts(branches), tuple(segments))


def copd(method: MethodConfig, branches: Branches, rhythm: Sequence[int] = ()) -> Plan:
    """`rhythm` has the RLVR steps of the cycles that are decided; what is not decided yet goes on as it was."""
    # The paper's method: phase I is RLVR of each branch alone; in phase II a step learns from rewards and teachers.
    decided = [*rhythm] or [method.rlvr_steps]
    rlvr_steps = decided + decided[-1:] * (method.cycles - len(decided))

    def mutual(name: str, first: int, count: int) -> Segment:
        teaching = _edges_of(name, method, branches)
        steps: list[Step] = []
        for number in _numbers(first, count):
            # Live teachers are as they were before this step: after it, branches that teach each other would wait for
            # each other. Frozen ones are as they were when the phase began.
            age = number - 1 if method.sync == "step" else first
            steps.append(Step(name, number, branches[name].capabilities, _teachers(teaching, branches, age)))
        return Segment("opd", tuple(steps))

    return _in_cycles(method, branches, rlvr_steps, mutual)


def pilot(method: MethodConfig, branches: Branches) -> Plan:
    """Students are called STUDENT-EXPERT-TEMPERATURE, and draw the same prompts with the same chance."""
    # The paper's: one finished teacher, and students whose overlap with it differs, each the base after a few steps on
    # samples of its own temperature. Then all listen for the same number of steps.
    assert method.student is not None
    experts = {name: branch for name, branch in branches.items() if name != method.student}
    segments = list(alone(method, experts, dict.fromkeys(experts, method.expert_steps)))
    students: list[str] = []
    for edge in edges(method, tuple(branches)):
        for row, temperature in temperature_rows(method).items():
            student = f"{method.student}-{edge.teacher}-{row}"
            students.append(student)
            teaching = replace(edge, student=student)
            for segment in prepared(method, branches[method.student].capabilities, temperature, teaching, branches):
                steps = tuple(replace(step, stream=method.student) for step in segment.steps)
                segments.append(replace(segment, steps=steps))
    return Plan((*_starts(experts), *_starts(dict.fromkeys(students))), tuple(segments))


def ages(method: MethodConfig, branches: Branches) -> Plan:
    """Students are called STUDENT-EXPERT-REVISION."""
    # Not in the paper: one student, the base, has teachers that differ in age, and so in what they know.
    # All students make the same number of steps: what they gain is the only thing that varies with the teacher.
    experts = {name: branch for name, branch in branches.items() if name != method.student}
    total, steps = method.expert_steps, method.cycles * method.opd_steps
    ages = checkpoint_ages(method)
    segments = list(alone(method, experts, dict.fromkeys(experts, total), ages))
    students: list[str] = []
    for edge in edges(method, tuple(branches)):
        for age in ages:
            student = f"{method.student}-{edge.teacher}-{age}"
            students.append(student)
            segments += distilled(method, student, 0, steps, [replace(edge, student=student)], branches, age)
    return Plan((*_starts(experts), *_starts(dict.fromkeys(students))), tuple(segments))


def negative(method: MethodConfig, branches: Branches) -> Plan:
    # Not in the paper: a control that draws CoPD's rollouts and lowers what is unlikely, whoever would have taught.
    def pushed_down(name: str, first: int, count: int) -> Segment:
        teachers = [edge.teacher for edge in _edges_of(name, method, branches)]
        capabilities = tuple(capability for teacher in teachers for capability in branches[teacher].capabilities)
        steps = [Step(name, n, branches[name].capabilities, negative=capabilities) for n in _numbers(first, count)]
        return Segment("negative", tuple(steps))

    return _in_cycles(method, branches, [method.rlvr_steps] * method.cycles, pushed_down)


SYSTEMS: Mapping[str, Callable[[MethodConfig, Branches], Plan]] = {
    "base": base,
    "rlvr": rlvr,
    "static-opd": static_opd,
    "mopd": mopd,
    "copd": copd,
    "pilot": pilot,
    "ages": ages,
    "negative": negative,
}


# ---- what they are made of ----


def alone(
    method: MethodConfig, branches: Branches, counts: Mapping[str, int], ends: Collection[int] = ()
) -> Iterator[Segment]:
    """Experts, in segments of a cycle's length, turn by turn; a new segment begins after each of `ends`."""
    # Of a cycle's length, so that experts can be held against CoPD's branches at the ends of its cycles.
    length = max(1, method.rlvr_steps + method.opd_steps)
    for first in range(0, max(counts.values(), default=0), length):
        for name, branch in branches.items():
            begin, last = first, min(first + length, counts[name])
            # A branch that has all its steps has `last` below `begin`, and so no segment in this turn.
            for end in [*sorted(end for end in ends if first < end < last), last]:
                if end > begin:
                    yield _rlvr_segment(name, branch, begin, end - begin)
                    begin = end


def distilled(
    method: MethodConfig, student: str, first: int, count: int, teaching: Sequence[Edge], branches: Branches, age: int
) -> Iterator[Segment]:
    """A student that only listens, to teachers that stay as they were at an age."""
    length = max(1, method.rlvr_steps + method.opd_steps)
    teachers = _teachers(teaching, branches, age)
    for begin in range(first, first + count, length):
        numbers = _numbers(begin, min(length, first + count - begin))
        yield Segment("opd", tuple(Step(student, number, teachers=teachers) for number in numbers))


def temperature_rows(method: MethodConfig) -> dict[str, float]:
    """The temperatures of the pilot by the names of their students: 0.7 is t70, as a name has no point in it."""
    return {f"t{100 * temperature:.0f}": temperature for temperature in method.temperatures}


def prepared(
    method: MethodConfig, capabilities: tuple[str, ...], temperature: float, teaching: Edge, branches: Branches
) -> Iterator[Segment]:
    """A student of the pilot: RLVR on samples of a temperature, then a finished expert and no rewards."""
    first, steps = prior_steps(method), method.cycles * method.opd_steps
    yield Segment(
        "rlvr",
        tuple(Step(teaching.student, number, capabilities, temperature=temperature) for number in _numbers(0, first)),
    )
    yield from distilled(method, teaching.student, first, steps, [teaching], branches, method.expert_steps)


def _in_cycles(
    method: MethodConfig, branches: Branches, rlvr_steps: Sequence[int], second: Callable[[str, int, int], Segment]
) -> Plan:
    """Both phases of every cycle, each for all branches before the next begins. All cycles have the same length."""
    length = method.rlvr_steps + method.opd_steps
    segments: list[Segment] = []
    for cycle, count in enumerate(rlvr_steps):
        first = cycle * length
        if count:
            segments += [_rlvr_segment(name, branches[name], first, count) for name in branches]
        segments += [second(name, first + count, length - count) for name in branches]
    return Plan(_starts(branches), tuple(segments))


def _rlvr_segment(name: str, branch: BranchConfig, first: int, count: int) -> Segment:
    return Segment("rlvr", tuple(Step(name, number, branch.capabilities) for number in _numbers(first, count)))


def _edges_of(student: str, method: MethodConfig, branches: Branches) -> list[Edge]:
    return [edge for edge in edges(method, tuple(branches)) if edge.student == student]


def _teachers(teaching: Sequence[Edge], branches: Branches, age: int) -> tuple[Teacher, ...]:
    return tuple(
        Teacher(Ref(edge.teacher, age), capability, edge.beta)
        for edge in teaching
        for capability in branches[edge.teacher].capabilities
    )


def _starts(branches: Mapping[str, BranchConfig | None]) -> tuple[Start, ...]:
    return tuple(Start(name, branch.init if branch else "base") for name, branch in branches.items())


def _numbers(first: int, count: int) -> range:
    """The revisions that `count` steps make, starting from revision `first`."""
    return range(first + 1, first + count + 1)
