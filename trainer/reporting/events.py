"""What a run has reported, read from its file: `runs/ID/events.jsonl`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.names import BASE, Ref
from trainer.evaluation.overlap import Overlaps

Event = Mapping[str, Any]


def read_events(path: Path) -> list[Event]:
    """All of them; a last line that is still being written is not one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def overlaps_of(events: Sequence[Event]) -> Iterator[tuple[Event, Overlaps]]:
    for event in events:
        if event["kind"] == "overlap":
            # The event has other fields too, its kind, system, phase and step, and the alarms. One of a run of before
            # lacks what was not measured then.
            fields = {name: event[name] for name in Overlaps.__dataclass_fields__ if name in event}
            yield event, Overlaps.from_json(fields)


def overlap_lines(events: Sequence[Event]) -> Iterator[str]:
    """The last time that branches were compared: each pair, and each branch with the base."""
    measured = list(overlaps_of(events))
    if not measured:
        return
    _, last = measured[-1]
    branches = {name: Ref.parse(name).branch for name in last.branches if name != BASE}
    names = list(branches)
    pairs = {(a, b): f"{branches[a]}-{branches[b]}" for number, a in enumerate(names) for b in names[number + 1 :]}
    with_base = {(name, BASE): branch for name, branch in branches.items()}
    # Of a run of before there is no shared probability.
    measures = {"shared probability": last.shared} if last.shared else {}
    measures[f"overlap of the top {last.top_k}"] = last.overlap
    for whom, compared in (("", pairs), (" with the base", with_base)):
        cells: list[str] = []
        for (a, b), label in compared.items():
            # Both ways, as either may be the student; the lowest, as that one is the first out of reach.
            ways = [(last.branches.index(x), last.branches.index(y)) for x, y in ((a, b), (b, a))]
            lowest = (min(min(matrix[x][y]) for x, y in ways) for matrix in measures.values())
            cells.append(f"{label} {' / '.join(f'{value:.3f}' for value in lowest)}")
        if cells:
            yield f"{' / '.join(measures)}{whom}, lowest over the capabilities: {', '.join(cells)}"
