"""How a merged checkpoint was made, for programs (`merge.json`) and for people (the model card).

Left out: the numbers themselves (`merge`), and where scores come from.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from adapters.manifest import Frozen

Method = Literal["mean", "ties", "svd"]
METHODS: tuple[str, ...] = get_args(Method)
RECORD = "merge.json"

_HUB = re.compile(r"[\w.-]+/[\w.-]+")


class BranchRecord(Frozen):
    """What one branch gave."""

    name: str
    source: str
    digest: str
    share: float
    rank: int
    alpha: float
    rslora: bool


class Record(Frozen):
    """How a merged checkpoint was made, and what the merge did: `merge.json`."""

    base: str
    base_digest: str
    branches: tuple[BranchRecord, ...]
    method: Method
    scale: float
    rank: int | None
    density: float | None
    dtype: str
    """Of the folded weights."""
    changed: float
    """The share of the projections' weights that are other numbers than the base's, after the cast."""
    lost: float | None
    """The norm of what the cast rounded away, over that of the delta; null where the delta is 0."""
    largest_difference: float
    """Of any weight: folded and cast, against base and adapter in float32."""
    layer_norms: tuple[float, ...]
    """Of the merged delta, by layer."""
    cosines: dict[str, float | None]
    """Between two branches' deltas over all projections, by `NAME NAME`; null where one of them is 0."""


def write_card(folder: Path, record: Record, scores: Mapping[str, Mapping[str, float]]) -> None:
    """README.md of a merged checkpoint, new or again. Scores are by model and then by capability."""
    (folder / "README.md").write_text("\n".join(_card(record, scores)) + "\n")


def _card(record: Record, scores: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield from ("---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [merge, lora]")
    if _HUB.fullmatch(record.base):
        yield f"base_model: {record.base}"
    yield from ("---", "", f"# {' + '.join(branch.name for branch in record.branches)}", "")
    yield f"LoRA adapters folded into `{record.base}`, in float32 with one cast to {record.dtype}."
    yield from ("", f"* base: `{record.base}`, `{record.base_digest}`")
    yield from (f"* method: {record.method}{_settings(record)}", f"* scale: {record.scale:g}")
    yield f"* weights changed by it: {record.changed:.1%} of the projections'"
    yield from ("", "| branch | from | digest | weight | rank | alpha |", "| --- | --- | --- | --- | --- | --- |")
    for one in record.branches:
        alpha = f"{one.alpha:g}{' (rsLoRA)' if one.rslora else ''}"
        yield f"| {one.name} | {one.source} | `{one.digest}` | {one.share:.6g} | {one.rank} | {alpha} |"
    if scores:
        columns = sorted({name for row in scores.values() for name in row})
        yield from ("", "## Scores", "", f"| model | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}")
        for model, row in scores.items():
            cells = (f"{row[name]:.3f}" if name in row else "-" for name in columns)
            yield f"| {model} | {' | '.join(cells)} |"
    yield from ("", f"`{RECORD}` has this in full, with the norm of the delta by layer and the branches' cosines.")


def _settings(record: Record) -> str:
    if record.rank is not None:
        return f", rank {record.rank}"
    return "" if record.density is None else f", density {record.density:g}"
