"""What a training step is: who samples, on what, and who teaches. Everything names revisions, never heads."""

from dataclasses import dataclass

from adapters.names import Ref


@dataclass(frozen=True, slots=True)
class Teacher:
    """A revision that scores the student's own completions of prompts of one capability."""

    ref: Ref
    capability: str
    beta: float


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

    @property
    def parent(self) -> Ref:
        return Ref(self.branch, self.number - 1)
