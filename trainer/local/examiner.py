"""Models examined through a service of their own; and which scale of a merge answers best.

Scales are compared as stacked adapters, all on the same held-out questions.

Left out: weights of the branches. They are chosen in the same way by hand.
"""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.errors import UserError
from adapters.manifest import CONFIG
from adapters.merge import MergePlan, write_adapter
from adapters.merge_inputs import MergeBase
from adapters.names import BASE, MERGED
from clients.client import AsyncClient, from_environment
from trainer.evaluation.exams import Decode, Exam, ExamAnswer, decoder, exam_results, examine, exams, mean_results
from trainer.evaluation.intervals import Interval
from trainer.local.processes import SERVICE, ProcessGroup
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import Recipe
from trainer.recipe.parts import ENGINE_RANKS, engine_rank
from trainer.rewards.pool import HALF_THE_CORES, RewardPool

_LOOK_S = 0.2

Stopped = Callable[[], bool]


def stacked_rank(adapter: Path) -> int | None:
    """What the engine must take to serve the merge as an adapter; None: it cannot."""
    config = adapter / CONFIG
    if not config.exists():
        return None
    rank = int(json.loads(config.read_text())["r"])
    return engine_rank(rank) if rank <= ENGINE_RANKS[-1] else None


def flags_of(out: Path, rank: int | None = None, extra: Mapping[str, Path] | None = None) -> list[str]:
    """Of a service of the run in this folder that takes adapters of a rank, with some that are not in its store."""
    flags = [f"--store={out / 'store'}", f"--runs={out / 'runs'}"]
    if rank is not None:
        flags.append(f"--max-lora-rank={rank}")
    if extra:
        flags.append(f"--extra={','.join(f'{name}={folder}' for name, folder in extra.items())}")
    return flags


@dataclass(frozen=True, slots=True)
class Examiner:
    """Examines models through a service of its own, which ends with the questions."""

    recipe: Recipe
    out: Path
    children: ProcessGroup
    asked: Sequence[Exam]
    decode: Decode
    is_stopped: Stopped

    def examine(
        self, models: Sequence[str], *, rank: int | None = None, extra: Mapping[str, Path] | None = None
    ) -> list[ExamAnswer] | None:
        """None: told to stop."""
        return self._asked(models, flags_of(self.out, rank, extra))

    def examine_checkpoint(self, folder: Path) -> list[ExamAnswer] | None:
        """A checkpoint as a base of its own, called merged."""
        store = self.out / ".merged-store"
        try:
            flags = [f"--base={folder}", f"--store={store}"]
            items = self._asked([BASE], flags, **{URL_VARIABLE: ""})  # the queue is another store's
        finally:
            shutil.rmtree(store, ignore_errors=True)
        return None if items is None else [replace(item, model=MERGED) for item in items]

    def _asked(self, models: Sequence[str], flags: Sequence[str], **environ: str) -> list[ExamAnswer] | None:
        words = (str(self.out / "recipe.json"), "--port=0", *flags)
        url = self.children.serve(SERVICE, *words, is_stopped=self.is_stopped, **environ)
        if url is None:
            return None
        questions = ", ".join(f"{len(exam.prompts)} of {exam.name}" for exam in self.asked)
        print(f"examining {', '.join(models)} on questions: {questions}", flush=True)
        with RewardPool(num_children=HALF_THE_CORES) as pool:
            items = asyncio.run(self._answers(url, models, pool))
        self.children.stop()
        return items

    async def _answers(self, url: str, models: Sequence[str], pool: RewardPool) -> list[ExamAnswer] | None:
        key = from_environment(os.environ)["api_key"]
        async with AsyncClient(url, api_key=key) as client:
            work = asyncio.create_task(
                examine(
                    client,
                    pool,
                    models,
                    self.asked,
                    seed=self.recipe.seed,
                    max_tokens=self.recipe.rollout.max_completion_tokens,
                    decode=self.decode,
                )
            )
            while not work.done():
                if self.is_stopped():
                    work.cancel()
                    await asyncio.wait([work])
                    return None
                await asyncio.wait([work], timeout=_LOOK_S)
            return await work


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """A scale, the mean accuracy over the capabilities, and its gain over the smallest scale."""

    scale: float
    accuracy: Interval
    gain: Interval


def scale_curve(
    recipe: Recipe, run: Path, base: MergeBase, mix: MergePlan, scales: Sequence[float], is_stopped: Callable[[], bool]
) -> list[ScalePoint]:
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
        with ProcessGroup(run / "logs", {"OMP_NUM_THREADS": "1"}) as children:
            examiner = Examiner(recipe, run, children, asked, decoder(recipe), is_stopped)
            items = examiner.examine(list(extra), rank=rank, extra=extra)
    means = mean_results(exam_results(items or [], asked)) if items else []
    return [ScalePoint(scale, one.accuracy, one.gain) for scale, one in zip(scales, means, strict=False)]


def best_scale(accuracies: Mapping[float, float]) -> float:
    """By scale; of equals the one nearest to 1."""
    return max(accuracies, key=lambda scale: (accuracies[scale], -abs(scale - 1)))
