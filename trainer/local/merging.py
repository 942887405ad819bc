"""A merge as `coevo merge` makes it: which adapters its words name, which scale it takes, and what it wrote."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapters.errors import UserError
from adapters.merge import MergePlan, fold, write_adapter
from adapters.merge_inputs import MergeBase, MergeInput, heads, open_folder, open_revision
from adapters.merge_record import Record, write_card
from adapters.names import Ref, is_name
from trainer.recipe import Recipe
from trainer.reporting.progress import Progress


def branches_of(texts: Sequence[str], store: Path | None, base: MergeBase) -> list[MergeInput]:
    """The adapters that are named; of a run or a store alone, the newest revision of every branch."""
    for folder in (Path(texts[0]) / "store", Path(texts[0])):
        if len(texts) == 1 and (folder / "store.json").is_file():
            refs = heads(folder)
            if not refs:
                raise UserError(f"{folder}: no branch is in it yet; merge it when every branch has made a step")
            return [open_revision(folder, ref, base) for ref in refs]
    return [branch_of(text, store, base) for text in texts]


def branch_of(text: str, store: Path | None, base: MergeBase) -> MergeInput:
    """`[NAME=]BRANCH@REVISION` of a store, or `[NAME=]FOLDER`."""
    name, is_named, source = text.partition("=")
    if not (is_named and is_name(name)):  # a folder may have a = in its path
        name, source = None, text
    if store is None or Path(source).is_dir():
        if not Path(source).is_dir():
            raise UserError(f"{source}: no such folder; name one, or BRANCH@REVISION with --store")
        return open_folder(Path(source), base, name)
    return open_revision(store, Ref.parse(source), base, name)


def chosen_scale(recipe: Recipe | None, run: Path, base: MergeBase, merge_plan: MergePlan) -> float:
    # Not at the top: a plain merge needs no engine's client.
    from trainer.local.scales import SCALES, best_scale, scale_curve

    if recipe is None:
        raise UserError("--scale auto: goes by the questions of a run; name the folder of one")
    if merge_plan.method == "ties":
        raise UserError("--scale auto: compares adapters, and ties makes none; take mean or svd")
    curve = scale_curve(recipe, run, base, merge_plan, SCALES)
    points = [{"scale": point.scale, "accuracy": point.accuracy.mean} for point in curve]
    (run / "scales.json").write_text(json.dumps(points) + "\n")  # for the page, whose slider goes over them
    print("scale\taccuracy\tgain")
    for point in curve:
        half = "-" if point.gain.half_width is None else f"{point.gain.half_width:.4f}"
        print(f"{point.scale:g}\t{point.accuracy.mean:.4f}\t{point.gain.mean:+.4f} +-{half}")
    scale = best_scale({point.scale: point.accuracy.mean for point in curve})
    print(f"scale: {scale:g}")
    return scale


def make(
    base: MergeBase, merge_plan: MergePlan, out: Path | None, adapter: Path | None, scores: dict[str, dict[str, float]]
) -> None:
    for branch in merge_plan.branches:
        if branch.dtype != "F32":
            print(f"{branch.name}: its weights are {branch.dtype}; merged in float32")
    # First the small one: what is wrong with the branches is seen before many GB are written.
    if adapter is not None:
        write_adapter(base, merge_plan, adapter)
        print(f"adapter: {adapter}")
    if out is not None:
        with Progress("merging", "tensors") as progress:
            record = fold(base, merge_plan, out, progress.show)
        if scores:
            write_card(out, record, scores)
        print("\n".join(lines(record)))
        print(f"checkpoint: {out}")


def lines(record: Record) -> Iterator[str]:
    """What the merge did, for a person."""
    yield f"weights: {', '.join(f'{branch.source} {branch.share:.4g}' for branch in record.branches)}"
    yield f"changed: {record.changed:.1%} of the projections' weights ({record.dtype})"
    if record.lost is not None:
        yield f"rounded away: {record.lost:.1%} of the delta; at most {record.largest_difference:.3g} in a weight"
    yield f"norm of the delta by layer: {' '.join(f'{norm:.3g}' for norm in record.layer_norms)}"
    for pair, cosine in record.cosines.items():
        yield f"cosine of {pair}: {'-' if cosine is None else f'{cosine:.3f}'}"
