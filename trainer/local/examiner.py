"""Models examined through a service of their own. Left out: which scale of a merge answers best (`scales`)."""

import asyncio
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.manifest import CONFIG
from adapters.names import BASE, MERGED
from clients.client import AsyncClient, from_environment
from trainer.evaluation.exams import Decode, Exam, ExamAnswer, examine
from trainer.local.processes import LOOK_S, SERVICE, ProcessGroup
from trainer.queue.server import URL_VARIABLE
from trainer.recipe import Recipe
from trainer.recipe.limits import limits
from trainer.recipe.parts import ENGINE_RANKS, engine_rank
from trainer.reporting.progress import Progress
from trainer.rewards.pool import HALF_THE_CORES, RewardPool

ADAPTER = "merged-adapter"
"""The folder of a run's merge as one adapter: `finish` writes it, `coevo eval RUN` serves it."""


def stacked_rank(adapter: Path) -> int | None:
    """The rank that an engine must take to serve this adapter; None: none takes it, or there is no adapter."""
    config = adapter / CONFIG
    if not config.exists():
        return None
    rank = int(json.loads(config.read_text())["r"])
    return engine_rank(rank) if rank <= ENGINE_RANKS[-1] else None


def flags_of(out: Path, rank: int | None = None, extra: Mapping[str, Path] | None = None) -> list[str]:
    """Flags of a service with a run's store, that takes adapters of a rank, and some that are not in the store."""
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
    processes: ProcessGroup
    exams: Sequence[Exam]
    decode: Decode

    def examine(
        self,
        models: Sequence[str],
        *,
        rank: int | None = None,
        extra: Mapping[str, Path] | None = None,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> list[ExamAnswer]:
        """A model that is in `only` is asked the exams named there."""
        return self._serve_and_ask(models, flags_of(self.out, rank, extra), only)

    def examine_checkpoint(self, folder: Path) -> list[ExamAnswer]:
        """A checkpoint as a base of its own, called merged."""
        store = self.out / ".merged-store"
        try:
            flags = [f"--base={folder}", f"--store={store}"]
            # Without a queue: it belongs to the run's store, and would refuse the service of another.
            items = self._serve_and_ask([BASE], flags, None, **{URL_VARIABLE: ""})
        finally:
            shutil.rmtree(store, ignore_errors=True)  # nothing is ever published there
        return [replace(item, model=MERGED) for item in items]

    def _serve_and_ask(
        self, models: Sequence[str], flags: Sequence[str], only: Mapping[str, Collection[str]] | None, **environ: str
    ) -> list[ExamAnswer]:
        words = (str(self.out / "recipe.json"), "--port=0", *flags)
        url = self.processes.serve(SERVICE, *words, **environ)
        questions = ", ".join(f"{len(exam.prompts)} of {exam.name}" for exam in self.exams)
        print(f"examining {', '.join(models)} on questions: {questions}", flush=True)
        with RewardPool(num_children=HALF_THE_CORES) as pool, Progress("examining", "questions") as progress:
            items = asyncio.run(self.ask(url, models, pool, progress, only))
        # The engine's memory is free again before the next service starts.
        self.processes.stop()
        return items

    async def ask(
        self,
        url: str,
        models: Sequence[str],
        pool: RewardPool,
        progress: Progress,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> list[ExamAnswer]:
        key = from_environment(os.environ)["api_key"]
        async with AsyncClient(url, api_key=key, **limits(self.recipe).of_client) as client:
            # A task beside this one, which looks at the stop flag: signals set a flag and interrupt nothing.
            work = asyncio.create_task(
                examine(
                    client,
                    pool,
                    models,
                    self.exams,
                    seed=self.recipe.seed,
                    max_tokens=self.recipe.rollout.max_completion_tokens,
                    decode=self.decode,
                    only=only,
                    tell=progress.show,
                )
            )
            try:
                while not work.done():
                    self.processes.check_stop()
                    self.processes.restart_dead()
                    await asyncio.wait([work], timeout=LOOK_S)
                return await work
            finally:
                work.cancel()
                await asyncio.wait([work])  # until its questions have left the service
