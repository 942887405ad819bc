"""A plan: every training step of every branch before the first one is made.

It is static and complete, and everything in it names revisions, never heads; so who works on what, and when, cannot
change what is computed. A `Step` makes one revision. The steps of a branch come in segments; a worker is given one at a
time. `trainer.plan.make` makes plans of recipes.

Left out: jobs, leases and time (`trainer.queue`).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adapters.names import Ref


@dataclass(frozen=True, slots=True)
class Teacher:
    """A revision that scores the student's own completions of prompts of one capability."""

    ref: Ref
    capability: str
    beta: float

    @property
    def name(self) -> str:
        """The name of its term in the loss, and so of its metrics."""
        branch = self.ref.branch
        # A branch is often called after its only capability: then the name would say the same twice.
        return branch if branch == self.capability else f"{branch}-{self.capability}"


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of one branch: from revision `number` - 1 to revision `number`."""

    branch: str
    number: int
    capabilities: tuple[str, ...] = ()
    """Whose rewards it learns from; none: it only listens to teachers."""
    teachers: tuple[Teacher, ...] = ()
    negative: tuple[str, ...] = ()
    """Capabilities on whose prompts the control without a teacher is computed."""
    is_phase_end: bool = False
    seed: int | None = None
    """The seed of its prompts and samples; None: the run's."""
    stream: str | None = None
    """The name that it draws under; None: its branch's. Branches of equal stream and seed draw alike."""
    temperature: float | None = None
    """The temperature of its samples; None: the recipe's."""

    @property
    def parent(self) -> Ref:
        return Ref(self.branch, self.number - 1)

    @property
    def makes(self) -> Ref:
        return Ref(self.branch, self.number)

    @property
    def needs(self) -> tuple[Ref, ...]:
        """The revisions that must be there before it can begin."""
        return (self.parent, *(teacher.ref for teacher in self.teachers))


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps of one branch that follow each other."""

    kind: str
    """`rlvr`, `opd` or `negative`."""
    steps: tuple[Step, ...]
    system: str = ""
    """The system that the branch is part of, in the plan of a comparison; empty in any other."""
    row: str = ""
    """The branch within its system: its capability, for a pilot's student the teacher's age too. Empty: it is alone."""
    is_watched: bool = True
    """Whether its branch is compared with the others of its group while they learn."""

    @property
    def branch(self) -> str:
        return self.steps[0].branch

    @property
    def seed(self) -> int | None:
        return self.steps[0].seed

    @property
    def group(self) -> str:
        """The name of the branches that are compared with each other: those of one system and seed, `s0-copd3`."""
        return f"s{self.seed}-{self.system}" if self.system else ""

    @property
    def first(self) -> int:
        """The revision that it starts from."""
        return self.steps[0].number - 1

    @property
    def id(self) -> str:
        # Segments of a branch do not overlap, so where it begins is enough. What comes after may still change (rhythm).
        return f"{self.branch}:{self.first}"


@dataclass(frozen=True, slots=True)
class Start:
    """How a branch begins: at `base`, or at a revision of another."""

    branch: str
    origin: str
    seed: int | None = None
    """The seed of its first A; None: the run's."""


@dataclass(frozen=True, slots=True)
class Plan:
    starts: tuple[Start, ...]
    segments: tuple[Segment, ...]
    """In an order in which they can be made one after another, phase by phase."""

    @property
    def steps(self) -> Iterator[Step]:
        return (step for segment in self.segments for step in segment.steps)

    def head(self, branch: str) -> int:
        """The last revision that a branch will have."""
        return max((step.number for step in self.steps if step.branch == branch), default=0)

    @property
    def phase_ends(self) -> int:
        """The most ends of phases that a branch has: each segment ends one, and its revision is never retired."""
        return max(Counter(segment.branch for segment in self.segments).values(), default=0)


def is_there(ref: Ref, heads: Mapping[str, int]) -> bool:
    """Whether a revision is published, going by the branches' heads."""
    assert ref.revision is not None
    # Revisions are published in order, so whatever is below a head was there.
    return heads.get(ref.branch, -1) >= ref.revision


def missing_teachers(step: Step, heads: Mapping[str, int]) -> list[Ref]:
    """The teachers' revisions that a step reads and that nobody has published yet."""
    return [teacher.ref for teacher in step.teachers if not is_there(teacher.ref, heads)]


def impossible(plan: Plan, existing: Sequence[Ref] = ()) -> Iterator[str]:
    """Why a plan cannot be made, in words; nothing if it can. `existing` revisions are in the store already."""
    revisions = {Ref(start.branch, 0) for start in plan.starts} | {step.makes for step in plan.steps} | set(existing)
    heads = {start.branch: 0 for start in plan.starts}  # revision 0 is the fresh adapter
    for start in plan.starts:
        if start.origin != "base" and Ref.parse(start.origin) not in revisions:
            yield f"{start.branch} starts from {start.origin}, which nothing makes"
    for step in plan.steps:
        if step.branch not in heads:
            yield f"{step.makes}: its branch never starts"
        elif step.number != heads[step.branch] + 1:
            yield f"{step.makes}: follows {step.branch}@{heads[step.branch]}"
        heads[step.branch] = step.number  # after a gap too, so that one missing step is one complaint
        yield from (f"{step.makes} needs {ref}, which nothing makes" for ref in step.needs if ref not in revisions)
