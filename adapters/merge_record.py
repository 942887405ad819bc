"""How a merge was made, for programs (`merge.json`) and for people (the model cards of checkpoint and adapter).

Left out: the numbers themselves (`merge`), and where scores come from.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
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
    dtype: str = "F32"
    """The dtype of its weights in its file."""


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
    """The dtype of the folded weights."""
    changed: float
    """The share of the projections' weights that are other numbers than the base's, after the cast."""
    lost: float | None
    """The norm of what the cast rounded away, over that of the delta; null where the delta is 0."""
    largest_difference: float
    """The largest error of a weight: folded and cast, against base and adapter in float32."""
    layer_norms: tuple[float, ...]
    """The norm of the merged delta, by layer."""
    cosines: dict[str, float | None]
    """Between two branches' deltas over all projections, by `NAME NAME`; null where one of them is 0."""


def write_card(folder: Path, record: Record, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write README.md of a merged checkpoint, new or again. Scores are by model and then by capability."""
    setting = "" if record.density is None else f", density {record.density:g}"
    setting = setting if record.rank is None else f", rank {record.rank}"
    lines = [
        *_beginning("transformers", record.base, record.branches),
        f"LoRA adapters folded into `{record.base}`, in float32 with one cast to {record.dtype}.",
        *("", f"* base: `{record.base}`, `{record.base_digest}`"),
        *(f"* method: {record.method}{setting}", f"* scale: {record.scale:g}"),
        f"* weights changed by it: {record.changed:.1%} of the projections'",
        *_table(record.branches),
    ]
    if scores:
        columns = sorted({name for row in scores.values() for name in row})
        lines += ["", "## Scores", "", f"| model | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for model, row in scores.items():
            cells = (f"{row[name]:.3f}" if name in row else "-" for name in columns)
            lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += ["", f"`{RECORD}` has this in full, with the norm of the delta by layer and the branches' cosines."]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def write_adapter_card(
    folder: Path, base: str, base_digest: str, branches: Sequence[BranchRecord], *, method: Method, scale: float
) -> None:
    """Write README.md of a merged adapter."""
    lines = [
        *_beginning("peft", base, branches),
        f"LoRA adapters of `{base}` merged into a single adapter of PEFT's format.",
        *("", f"* base: `{base}`, `{base_digest}`", f"* method: {method}", f"* scale: {scale:g}"),
        *_table(branches),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _beginning(library: str, base: str, branches: Sequence[BranchRecord]) -> Iterator[str]:
    yield from ("---", f"library_name: {library}", "pipeline_tag: image-text-to-text", "tags: [merge, lora]")
    if _HUB.fullmatch(base):  # a folder of this machine would be no link on the hub
        yield f"base_model: {base}"
    yield from ("---", "", f"# {' + '.join(branch.name for branch in branches)}", "")


def _table(branches: Sequence[BranchRecord]) -> Iterator[str]:
    yield from ("", "| branch | from | digest | weight | rank | alpha | dtype |", f"|{' --- |' * 7}")
    for b in branches:
        alpha = f"{b.alpha:g}{' (rsLoRA)' if b.rslora else ''}"
        yield f"| {b.name} | {b.source} | `{b.digest}` | {b.share:.6g} | {b.rank} | {alpha} | {b.dtype} |"
