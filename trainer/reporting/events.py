"""What a run has told, read from its file: `runs/ID/events.jsonl`."""

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
            fields = {name: event[name] for name in Overlaps.__dataclass_fields__}
            yield event, Overlaps.from_json(fields)


def overlap_lines(events: Sequence[Event]) -> Iterator[str]:
    """Of the last time that branches were compared: each pair, and each branch with the base."""
    found = list(overlaps_of(events))
    if not found:
        return
    _, last = found[-1]
    names = [name for name in last.branches if name != BASE]
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    for title, compared in (("overlap", pairs), ("overlap with the base", [(name, BASE) for name in names])):
        cells = [f"{_label(a, b)} {_both_ways(last, a, b)}" for a, b in compared]
        if cells:
            yield f"{title} (top {last.top_k}, lowest over the capabilities): {', '.join(cells)}"


def _label(a: str, b: str) -> str:
    return Ref.parse(a).branch if b == BASE else f"{Ref.parse(a).branch}-{Ref.parse(b).branch}"


def _both_ways(found: Overlaps, a: str, b: str) -> str:
    lowest = min(found.at(x, y, capability)[0] for x, y in ((a, b), (b, a)) for capability in found.capabilities)
    return f"{lowest:.3f}"
