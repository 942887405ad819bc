"""The section of a recipe that names the system: which steps, in which order, and who learns from whom."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.recipe.parts import Section

Mix = Literal["equal", "proportional"]
_TEMPERATURES = (0.4, 0.7, 1.0, 1.3, 1.6)
"""Around 1, where samples are the policy's own. Above 2 they are noise."""


LISTENING = ("mopd", "pilot", "ages")
"""Kinds whose finished experts teach `student`."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A student that learns from a teacher, with a weight. `edges` makes them from a method."""

    student: str
    teacher: str
    beta: float


class ExplicitEdge(Section):
    """An edge as written: `"text <- image"`, or a table with its own beta."""

    student: str
    """The branch that learns."""
    teacher: str
    """The branch that it learns from."""
    beta: float | None = Field(default=None, gt=0)
    """The weight of the teacher's signal; null = `method.beta`."""

    @model_validator(mode="before")
    @classmethod
    def _read_arrow(cls, value: object) -> object:
        if not isinstance(value, str):
            return value  # a table: pydantic says what is missing in it
        student, arrow, teacher = (part.strip() for part in value.partition("<-"))
        if not (student and arrow and teacher):
            raise ValueError(f'{value!r} is no edge; write "student <- teacher"')
        return {"student": student, "teacher": teacher}


class Negative(Section):
    """`negative`: what stands in for the teacher."""

    advantage: float = Field(default=0.1, gt=0)
    """The amount taken from each token that the student itself finds unlikely."""
    probability: float = Field(default=0.1, gt=0, lt=1)
    """The probability under the student below which a token is unlikely."""


class MethodConfig(Section):
    """The system: which steps are made in which order, and who learns from whom."""

    kind: Literal["base", "rlvr", "static-opd", "mopd", "copd", "pilot", "ages", "negative"] = "copd"
    """The kind of system. base: no training. rlvr: each branch on its own data; these are the experts, a branch with
    several capabilities is mixed RLVR, and several branches that are merged are the merge of experts. static-opd:
    experts first, then each edge's student learns from its frozen teacher. mopd: experts first, then `student` learns
    from all. copd: mutual, in cycles. pilot: experts first, then a `student` for each of `temperatures`, which is
    prepared by its own data at that one. ages: experts first, then a fresh `student` for each of their checkpoints.
    negative: copd's steps, no teachers."""
    cycles: int = Field(default=8, ge=1)
    """The rounds of RLVR and then mutual distillation, in copd and negative."""
    rlvr_steps: int = Field(default=3, ge=0)
    """The steps of GRPO in a cycle."""
    opd_steps: int = Field(default=2, ge=0)
    """The steps of mutual distillation in a cycle."""
    steps: int | None = Field(default=None, ge=1)
    """The steps of one expert, where there are no cycles; null = cycles x (rlvr_steps + opd_steps), for a fair
    table."""
    topology: Literal["pairwise", "hub", "ring", "explicit"] = "pairwise"
    """The edges of mutual distillation. pairwise: all from all. hub: `hub` and all others from each other. ring: each
    from the one before. explicit: `edges`."""
    hub: str | None = None
    """The branch in the middle of topology hub."""
    edges: tuple[ExplicitEdge, ...] = ()
    """The edges of topology explicit, such as "text <- image". Leaving an edge out is the ablation of it."""
    beta: float = Field(default=1.0, gt=0)
    """The weight of a teacher's signal, on an edge without its own. At 2 a teacher counts twice."""
    student: str | None = None
    """The fresh branch that learns from the experts, in mopd, pilot and ages."""
    checkpoints: int = Field(default=5, ge=1)
    """The number of revisions of each expert that teach, in ages."""
    temperatures: tuple[Annotated[float, Field(gt=0, le=2)], ...] = Field(
        default=_TEMPERATURES, min_length=2, exclude_if=lambda temperatures: temperatures == _TEMPERATURES
    )
    """The temperatures of the samples that prepare the students, in pilot: one student each, so that they differ in how
    alike they and their teacher are."""
    prior_steps: int | None = Field(default=None, ge=1, exclude_if=lambda steps: steps is None)
    """The steps of RLVR that prepare a student, in pilot; null = a fifth of an expert's."""
    negative: Negative = Negative()
    sync: Literal["step", "phase"] = "step"
    """The age of teachers. step: as they were before this step (live). phase: as at the start of the phase
    (frozen)."""
    rule: Literal["paper", "equal"] = "paper"
    """The matching of steps between systems: as the paper's table does, or to an equal total."""
    rhythm: Literal["fixed", "adaptive"] = "fixed"
    """The share of RLVR steps in a cycle. adaptive: after each cycle, where the least probability that a student
    shares with its teacher is below 0.97, three quarters of the RLVR steps, and where it is above 0.995, five quarters;
    a cycle's length stays. For copd."""
    mix: Mix = "equal"
    """The prompts of a mixed branch. equal: as many from each capability. proportional: by how many each has."""

    @property
    def expert_steps(self) -> int:
        return self.steps or self.cycles * (self.rlvr_steps + self.opd_steps)

    @property
    def cyclic(self) -> bool:
        """Whether the steps come in cycles of two phases."""
        return self.kind in ("copd", "negative")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*_topology_problems(self), *_kind_problems(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _topology_problems(method: MethodConfig) -> Iterator[str]:
    if method.topology == "explicit" and not method.edges:
        yield 'topology explicit has no edges; add edges = ["student <- teacher"]'
    if method.edges and method.topology != "explicit":
        yield f'edges are given, but topology is {method.topology}; set topology = "explicit" or remove edges'
    if method.topology == "hub" and method.hub is None:
        yield 'topology hub has no hub; set hub = "BRANCH"'
    if method.hub is not None and method.topology != "hub":
        yield f'hub is given, but topology is {method.topology}; set topology = "hub" or remove hub'
    # Twice the same edge would be two teachers in one, with the sum of their betas: nobody means that.
    pairs = [(edge.student, edge.teacher) for edge in method.edges]
    for student, teacher in dict.fromkeys(pairs):
        if student == teacher:
            yield f"edge {student} <- {teacher}: a branch cannot teach itself; remove the edge"
        if pairs.count((student, teacher)) > 1:
            yield f"edge {student} <- {teacher} is there twice; keep one and set its beta"


def _kind_problems(method: MethodConfig) -> Iterator[str]:
    if method.cyclic and method.steps is not None:
        yield f"steps is not read by {method.kind}; remove it and set cycles, rlvr_steps and opd_steps"
    if method.rhythm == "adaptive" and method.kind != "copd":
        yield f"rhythm adaptive is not read by {method.kind}; remove it, or take kind copd"
    if method.rhythm == "adaptive" and method.rlvr_steps == 0:
        yield "rhythm adaptive has no RLVR steps to shift; set rlvr_steps"
    if method.cyclic and method.opd_steps == 0:
        yield f'{method.kind} without opd_steps teaches nothing; set opd_steps, or kind = "rlvr"'
    if not method.cyclic and method.expert_steps == 0:
        yield "no steps to make; set steps"
    if method.kind in LISTENING and method.student is None:
        yield f'{method.kind} has no student; set student = "BRANCH", a branch that is not one of the experts'
    if method.student is not None and method.kind not in LISTENING:
        yield f"student is not read by {method.kind}; remove it, or take kind mopd, pilot or ages"
    if len({round(100 * temperature) for temperature in method.temperatures}) < len(method.temperatures):
        yield "temperatures are equal to two digits; take others"


def edges(method: MethodConfig, branches: Sequence[str]) -> tuple[Edge, ...]:
    """The edges between branches, whichever way the recipe says it."""
    if method.kind in ("base", "rlvr"):
        return ()
    if method.kind in LISTENING:  # the experts are finished: they teach and learn no more
        return _between(method.student, branches, both_ways=False, beta=method.beta)
    if method.topology == "hub":
        return _between(method.hub, branches, both_ways=True, beta=method.beta)
    if method.topology == "explicit":
        return tuple(Edge(e.student, e.teacher, method.beta if e.beta is None else e.beta) for e in method.edges)
    if method.topology == "ring":
        pairs = [(student, branches[number - 1]) for number, student in enumerate(branches)]  # the first from the last
    else:
        pairs = [(student, teacher) for student in branches for teacher in branches]
    return tuple(Edge(student, teacher, method.beta) for student, teacher in pairs if student != teacher)


def _between(centre: str | None, branches: Sequence[str], *, both_ways: bool, beta: float) -> tuple[Edge, ...]:
    """The edges from all branches around the centre to it, and back if both ways are wanted."""
    assert centre is not None, "a valid method names it"
    outer = [branch for branch in branches if branch != centre]
    inward = [Edge(centre, branch, beta) for branch in outer]
    return (*inward, *(Edge(branch, centre, beta) for branch in outer)) if both_ways else tuple(inward)
