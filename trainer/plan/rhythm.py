"""The adaptive rhythm: how many of a cycle's steps are RLVR, by how alike the branches still are.

    least probability that a student shares with its teacher, on the teacher's data, at the end of a cycle
        below 0.97     3/4 of the RLVR steps in the next: branches that drift apart teach each other less and less
        above 0.995    5/4 of them: branches that are alike have little to teach
        else           as many as before

A cycle keeps its length and at least one step of each phase. Decisions are part of the run: the first one stands, for
all workers and after every restart (`Queue.agree`).

Left out: measuring it (`trainer.evaluation.overlap`, `trainer.orchestration.monitor`).
"""

import math
from collections.abc import Mapping
from itertools import takewhile

LOW, HIGH = 0.97, 0.995
"""Outside of this band the rhythm changes: CoPD's branches stay in it on the miniature, at 0.984 to 0.995
(bench/results/likeness.json). Below, they are like experts that never met (`overlap.ALARM`). Above, they differ by no
more than a random perturbation of the weights with a KL of 0.003. A wider band never acts, a narrower one always."""
_NAME = "rhythm:"


def next_rlvr_steps(steps: int, length: int, lowest: float) -> int:
    """The RLVR steps of a cycle of `length`, after one that had `steps` and ended at this least shared probability."""
    wanted = steps
    if lowest < LOW:
        wanted = math.floor(0.75 * steps)
    elif lowest > HIGH:
        wanted = math.ceil(1.25 * steps)  # up: one step would never become two otherwise
    return min(max(wanted, 1), length - 1)


def decision(cycle: int) -> str:
    """The name under which the RLVR steps of a cycle are agreed on, counted from 0."""
    return f"{_NAME}{cycle}"


def decided(agreed: Mapping[str, str], first: int) -> tuple[int, ...]:
    """RLVR steps of the cycles that are decided; the first cycle has the recipe's."""
    # `agreed` holds other things too, so it has at least as many entries as there are decisions. At a gap they end.
    later = takewhile(lambda name: name in agreed, map(decision, range(1, len(agreed) + 1)))
    return (first, *(int(agreed[name]) for name in later))
