"""The colours of branches and phases: the same on the page, in PNG pictures and in a terminal.

Each is between white and black enough to stand out on both (3:1, WCAG 1.4.11), so that light and dark need no second
set. The first five stay apart for people who see no red or no green. After the eighth colours come again, with another
dash.
"""

from collections.abc import Iterable

from adapters.names import BASE, MERGED

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#9b4dea", "#e5004c", "#b2749d", "#8a7400", "#3f7f93")
NEUTRAL = "#767676"
"""The base and the merge, which are no branches."""
PHASES = {"rlvr": "#7d8796", "opd": "#c2780a"}
"""Learning from rewards, and from teachers. Any other phase is `NEUTRAL`."""
DASHES = ((), (6, 3), (2, 3), (8, 3, 2, 3))
"""Pixels of line and gap: a dash for each round of the colours."""


def colours(branches: Iterable[str]) -> dict[str, str]:
    """The colour of each branch, and of base and merge; `branches` in the order of the run's plan."""
    # By place and not by a hash of the name: two branches of one run never share a colour before the eighth.
    names = [name for name in branches if name not in (BASE, MERGED)]
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)} | {
        BASE: NEUTRAL,
        MERGED: NEUTRAL,
    }
