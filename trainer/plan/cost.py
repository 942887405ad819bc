"""What steps cost: before a run as upper bounds, after it as what the run reported."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    steps: float = 0
    rollouts: float = 0
    generated: float = 0
    """Tokens of completions."""
    scored: float = 0
    """Tokens of those that a teacher scores, and the student with it."""
    trained: float = 0
    """Tokens that an update learns from: not those of prompts whose completions all get the same."""
    seconds: float = 0
    """The worker's; a plan knows none."""

    def __add__(self, cost: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(cost), strict=True)))

    def over(self, count: int) -> "Cost":
        """The mean of so many that add up to it."""
        return Cost(*(value / count for value in astuple(self)))
