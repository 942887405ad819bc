"""What a finished run ends with: its branches folded into one model, and every model examined beside the others.

    DIR/merged/            the merged checkpoint, with its card and how it was made
    DIR/merged-adapter/    the same as one adapter
    DIR/results.json       accuracy of the base, every branch and the merge, with intervals
    DIR/items.jsonl        every answer

The merge is examined as the adapter that it exactly is, stacked, by an engine that takes its rank; where there is none
(ties) or its rank is too large, as the folded checkpoint. What is there already is not made again.

Left out: what is shown of it (`scoreboard`, `picture`), and the branches themselves.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from adapters.base import locate
from adapters.manifest import CONFIG
from adapters.merge import Mixture, fold, mixture, write_adapter
from adapters.merge_inputs import Base, open_base, open_revision
from adapters.merge_record import Record, write_card
from adapters.names import BASE, MERGED, Ref
from clients.client import AsyncClient, from_environment
from trainer.children import SERVICE, Children
from trainer.evaluate import Decode, Exam, Item, Overall, Result, decoder, examine, exams, overall, results
from trainer.plan import Plan
from trainer.queue_server import URL_VARIABLE
from trainer.recipe import Recipe
from trainer.recipe.parts import ENGINE_RANKS, engine_rank
from trainer.rewards.pool import HALF_THE_CORES, RewardPool
from trainer.scoreboard import as_json
from trainer.systems import plan

ALONE = frozenset({"base", "mopd", "pilot"})
"""Systems whose result is no merge of their branches."""
ADAPTER = "merged-adapter"
_LOOK_S = 0.2

Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Outcome:
    found: list[Result]
    means: list[Overall]


def merge_of(recipe: Recipe, made: Plan, store: Path, base: Base) -> Mixture | None:
    """Of all branches at the end of their plan; None where there is nothing to merge."""
    settings = recipe.merge
    if settings.method == "none" or recipe.method.kind in ALONE or len(made.starts) < 2:
        return None
    branches = [open_revision(store, Ref(start.branch, made.head(start.branch)), base) for start in made.starts]
    return mixture(branches, settings.weights, method=settings.method, scale=settings.scale)


def finish(recipe: Recipe, out: Path, children: Children, is_stopped: Stopped) -> Outcome | None:
    """Merges, examines, writes. None: told to stop."""
    made = plan(recipe)
    folder = locate(recipe.base.name)
    base = open_base(folder, recipe.base.name)
    mix = merge_of(recipe, made, out / "store", base)
    if mix is not None:
        print(f"merging {', '.join(branch.source for branch in mix.branches)}", flush=True)
    record = merge(base, mix, out) if mix is not None else None
    asked = exams(recipe)
    models = [BASE, *(str(Ref(start.branch, made.head(start.branch))) for start in made.starts)]
    examiner = Examiner(recipe, out, children, asked, decoder(recipe), is_stopped)
    if mix is None:
        items = examiner.examine(models)
    elif (rank := stacked_rank(out / ADAPTER)) is None:
        items = examiner.examine(models)
        if items is not None:
            of_merged = examiner.examine_checkpoint(out / MERGED)
            items = None if of_merged is None else items + of_merged
    else:
        items = examiner.examine([*models, MERGED], rank=rank, extra={MERGED: out / ADAPTER})
    if items is None:
        return None
    found = results(items, asked)
    outcome = Outcome(found, overall(found))
    _write(out, recipe, outcome, items, record)
    return outcome


def merge(base: Base, mix: Mixture, out: Path) -> Record:
    """The checkpoint and, where there is one, the adapter: each whole or not there."""
    target, adapter = out / MERGED, out / ADAPTER
    if mix.method != "ties" and not adapter.exists():
        write_adapter(base, mix, adapter)
    if target.exists():
        return Record.model_validate_json((target / "merge.json").read_text())
    return fold(base, mix, target)


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
    children: Children
    asked: Sequence[Exam]
    decode: Decode
    is_stopped: Stopped

    def examine(
        self, models: Sequence[str], *, rank: int | None = None, extra: Mapping[str, Path] | None = None
    ) -> list[Item] | None:
        """None: told to stop."""
        return self._asked(models, flags_of(self.out, rank, extra))

    def examine_checkpoint(self, folder: Path) -> list[Item] | None:
        """A checkpoint as a base of its own, called merged."""
        store = self.out / ".merged-store"
        try:
            flags = [f"--base={folder}", f"--store={store}"]
            items = self._asked([BASE], flags, **{URL_VARIABLE: ""})  # the queue is another store's
        finally:
            shutil.rmtree(store, ignore_errors=True)
        return None if items is None else [replace(item, model=MERGED) for item in items]

    def _asked(self, models: Sequence[str], flags: Sequence[str], **environ: str) -> list[Item] | None:
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

    async def _answers(self, url: str, models: Sequence[str], pool: RewardPool) -> list[Item] | None:
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


def scores_of(outcome: Outcome) -> dict[str, dict[str, float]]:
    """By model and exam, for a card: what the likeliest answer gets, else the mean of the sampled ones."""
    scores: dict[str, dict[str, float]] = {}
    for one in outcome.found:
        of_model = scores.setdefault(one.model, {})
        if one.way == "greedy" or one.exam not in of_model:
            of_model[one.exam] = one.accuracy.mean
    return scores


def _write(out: Path, recipe: Recipe, outcome: Outcome, items: Sequence[Item], record: Record | None) -> None:
    """The table last: it says that all else is there."""
    if record is not None:
        write_card(out / MERGED, record, scores_of(outcome))
    (out / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    draft = out / ".results.json"
    draft.write_text(json.dumps(as_json(recipe, outcome.found, outcome.means), indent=1, allow_nan=False) + "\n")
    draft.replace(out / "results.json")
