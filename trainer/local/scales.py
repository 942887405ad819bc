"""Which scale of a merge answers best.

Scales are compared as stacked adapters, all on the same held-out questions. Weights of the branches are chosen in the
same way by hand.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import UserError
from adapters.merge import MergePlan, write_adapter
from adapters.merge_inputs import MergeBase
from trainer.evaluation.exams import capability_means, decoder, exam_results, exams
from trainer.evaluation.intervals import Interval
from trainer.local.examiner import Examiner, stacked_rank
from trainer.local.processes import ProcessGroup
from trainer.recipe import Recipe

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Factors of a merged delta that `--scale auto` tries: around 1, the mean as it is. Each costs a round of questions."""


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """A scale, the mean accuracy over the capabilities, and its gain over the smallest scale."""

    scale: float
    accuracy: Interval
    gain: Interval


def scale_curve(
    recipe: Recipe, run: Path, base: MergeBase, merge_plan: MergePlan, scales: Sequence[float]
) -> list[ScalePoint]:
    """The accuracy of each scale by the first way of answering: the primary metric, or the likeliest answer."""
    first_exams = [replace(exam, ways=exam.ways[:1]) for exam in exams(recipe)]
    with tempfile.TemporaryDirectory(prefix=".scales-", dir=run) as name:
        folder = Path(name)
        extra = {f"merged-{number}": folder / f"{number}" for number in range(len(scales))}
        for scale, target in zip(scales, extra.values(), strict=True):
            write_adapter(base, replace(merge_plan, scale=scale), target)
        rank = stacked_rank(folder / "0")  # a scale changes no rank
        if rank is None:
            raise UserError("--scale auto: no engine serves an adapter of the sum of these ranks; take --method svd")
        with ProcessGroup(run / "logs", {"OMP_NUM_THREADS": "1"}) as processes:
            examiner = Examiner(recipe, run, processes, first_exams, decoder(recipe))
            items = examiner.examine(list(extra), rank=rank, extra=extra)
    means = capability_means(exam_results(items, first_exams))
    return [ScalePoint(scale, mean.accuracy, mean.gain) for scale, mean in zip(scales, means, strict=True)]


def best_scale(accuracies: Mapping[float, float]) -> float:
    """The scale of the highest accuracy; of equal ones the nearest to 1."""
    return max(accuracies, key=lambda scale: (accuracies[scale], -abs(scale - 1)))
