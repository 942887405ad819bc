"""Which scale of a merge answers best: the stacked adapter at several scales, all on the same held-out questions.

Left out: weights of the branches. They are chosen in the same way by hand.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import UserError
from adapters.merge import Mixture, write_adapter
from adapters.merge_inputs import Base
from trainer.children import Children
from trainer.evaluate import decoder, exams, overall, results
from trainer.finish import Examiner, stacked_rank
from trainer.intervals import Interval
from trainer.recipe import Recipe

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Point:
    """A scale, the mean accuracy over the capabilities, and its gain over the smallest scale."""

    scale: float
    accuracy: Interval
    gain: Interval


def scale_curve(
    recipe: Recipe, run: Path, base: Base, mix: Mixture, scales: Sequence[float], is_stopped: Callable[[], bool]
) -> list[Point]:
    """By the likeliest answer to each question. Empty: told to stop."""
    asked = [replace(exam, ways=exam.ways[:1]) for exam in exams(recipe)]
    with tempfile.TemporaryDirectory(prefix=".scales-", dir=run) as name:
        folder = Path(name)
        extra = {f"merged-{number}": folder / f"{number}" for number in range(len(scales))}
        for scale, target in zip(scales, extra.values(), strict=True):
            write_adapter(base, replace(mix, scale=scale), target)
        rank = stacked_rank(folder / "0")
        if rank is None:
            raise UserError("--scale auto: no engine serves an adapter of the sum of these ranks; take --method svd")
        with Children(run / "logs", {"OMP_NUM_THREADS": "1"}) as children:
            examiner = Examiner(recipe, run, children, asked, decoder(recipe), is_stopped)
            items = examiner.examine(list(extra), rank=rank, extra=extra)
    means = overall(results(items or [], asked)) if items else []
    return [Point(scale, one.accuracy, one.gain) for scale, one in zip(scales, means, strict=False)]


def best_scale(accuracies: Mapping[float, float]) -> float:
    """By scale; of equals the one nearest to 1."""
    return max(accuracies, key=lambda scale: (accuracies[scale], -abs(scale - 1)))
