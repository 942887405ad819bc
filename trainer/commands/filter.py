"""`coevo filter RECIPE CAPABILITY --out FILE.jsonl`: the training prompts that the base answers rightly now and then.

What it never or always answers rightly teaches nothing: all completions of a group have one reward. It asks a running
service (COEVO_SERVICE_URL) for as many answers of each prompt as a training step would, judges them by the answer
alone, and writes the rows whose pass rate lies between 0 and 1, as they were and with a `pass_rate`, into a file that
the recipe can name instead (`data.export` says what becomes of media). The miniature's questions become rows, too.

An answer that is cut off counts as it is rewarded; a row whose answers nobody can judge is dropped and counted. Equal
seeds give an equal file. FILE.jsonl.journal has the rates until there is one, and `--resume` goes on from it. Rows that
the recipe holds out are asked like all others: of the new file, other rows are held out.
"""

import argparse
import asyncio
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapters.errors import UserError
from adapters.manifest import base_digest
from adapters.names import BASE, Ref
from clients.client import AsyncClient, ServiceError, from_environment
from service.media import Limits
from trainer.commands.check import add_unchecked, is_refused
from trainer.data.base import base_of
from trainer.data.datasets import PromptSet
from trainer.data.export import original_rows, settings, write
from trainer.data.lengths import fit
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.evaluation.exams import answer_rule, decoder, pinned
from trainer.evaluation.pass_rates import (
    ALWAYS,
    KEPT,
    NEVER,
    Bounds,
    Journal,
    PromptRate,
    RateRequest,
    fate,
    histogram,
    rate,
)
from trainer.recipe import CapabilityConfig, Data, DatasetData, Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load
from trainer.recipe.limits import limits
from trainer.reporting.percent import percent
from trainer.reporting.progress import Progress
from trainer.rewards.pool import HALF_THE_CORES, RewardPool

_MOST_SAMPLES = 1024
"""Answers that the service gives to one request, at most; a prompt's answers are one request."""
_WIDTH = 40
"""Characters of the longest bar: it fits a terminal of 80 beside the numbers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("capability", metavar="CAPABILITY", help="whose training data")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="for the rows that are kept")
    parser.add_argument("--adapter", default=BASE, metavar="NAME", help="who answers: base, text or text@40 [base]")
    parser.add_argument("--samples", type=int, metavar="N", help="answers of each prompt [rollout.group_size]")
    parser.add_argument("--temperature", type=float, metavar="T", help="of the answers [rollout.temperature]")
    parser.add_argument("--above", type=float, default=0.0, metavar="RATE", help="keep rates above it; -1: 0 too [0]")
    parser.add_argument("--below", type=float, default=1.0, metavar="RATE", help="keep rates below it; 2: 1 too [1]")
    parser.add_argument("--limit", type=int, metavar="N", help="ask the first N usable rows only")
    parser.add_argument("--resume", action="store_true", help="go on with what was answered before")
    add_unchecked(parser)


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    name, out = str(arguments.capability), Path(arguments.out)
    # All that can be refused is refused before the first question: answers may take hours.
    if name not in recipe.capabilities:
        raise UserError(f"{name}: the recipe has no such capability; it has {', '.join(recipe.capabilities)}")
    capability = recipe.capabilities[name]
    samples, temperature, bounds = _sampling(arguments, recipe)
    data = _limited(capability.data, arguments.limit)
    notes = _journal_path(out, data, resume=arguments.resume)
    Ref.parse(arguments.adapter)
    reward, rollout = capability.reward, recipe.rollout
    rule = answer_rule(reward)
    base = base_of(recipe)
    digest = base_digest(base)
    # Here, for it reads data sets: what is wrong above is told at once.
    from trainer.local.preflight import capability_facts

    if is_refused("filter", arguments, capability_facts(recipe, name)):
        return 2
    with RewardPool(num_children=HALF_THE_CORES) as pool:
        try:
            model = asyncio.run(_pinned_model(digest, arguments.adapter))
        except ServiceError as error:
            raise UserError(str(error)) from None
        pool.check(rule)  # a rule that does not load is told now, not with the first answer
        prompts = fit(recipe, base)(name, open_prompts(name, data, seed=recipe.seed, limits=Limits()))
        request = RateRequest(
            name, model, digest, prompts.fingerprint, recipe.seed, samples, temperature, rollout.top_p,
            rollout.max_completion_tokens, rule,
        )  # fmt: skip
        journal = Journal(notes, request.head)
        with _saying_what_is_left(journal, len(prompts)):
            asyncio.run(_ask(recipe, capability, prompts, request, journal, pool))
    # In the order of the rows, not of the answers: equal seeds give an equal file.
    rated = [journal.rates[row] for row in range(len(prompts))]
    print("\n".join(lines(name, rated, bounds, prompts, samples)))
    rates = {prompt.index: {"pass_rate": prompt.rate} for prompt in rated if fate(prompt, bounds) == KEPT}
    if not rates:
        raise UserError(
            f"no row is kept, so {out} is not written; go on with other bounds and --resume: {notes} is kept"
        )
    with _saying_what_is_left(journal, len(prompts)):
        root = write(out, original_rows(prompts, data), rates)
    notes.unlink()  # only now: until the file is whole, `--resume` needs the rates
    print(f"a recipe reads {out} with {shlex.join(settings(name, capability, prompts, out, root))}")
    return 0


# ---- what is asked for ----


def _sampling(arguments: argparse.Namespace, recipe: Recipe) -> tuple[int, float, Bounds]:
    """Answers of a prompt, their temperature, and which rates are kept."""
    samples = recipe.rollout.group_size if arguments.samples is None else int(arguments.samples)
    temperature = recipe.rollout.temperature if arguments.temperature is None else float(arguments.temperature)
    bounds = Bounds(arguments.above, arguments.below)
    if not 2 <= samples <= _MOST_SAMPLES:
        raise UserError(f"--samples {samples}: a rate needs 2 answers, one request gives {_MOST_SAMPLES}; take 8, say")
    if not 0 < temperature <= 2:
        raise UserError(f"--temperature {temperature:g}: take a value above 0, where answers differ, and at most 2")
    if not bounds.above < bounds.below:
        raise UserError(
            f"--above {bounds.above:g} --below {bounds.below:g}: no rate lies between them; move them apart"
        )
    return samples, temperature, bounds


def _limited(data: Data, most: int | None) -> Data:
    if most is None:
        return data
    if most < 1:
        raise UserError(f"--limit {most}: nothing would be asked; take 1 or more")
    if not isinstance(data, DatasetData):
        # Questions that are made up are as many as the recipe says; a data set has those that it has.
        return data.model_copy(update={"size": min(most, data.size)})
    return data.model_copy(update={"limit": min(most, data.limit or most)})


def _journal_path(out: Path, data: Data, *, resume: bool) -> Path:
    """The journal's path, beside a file that can be written there."""
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: a recipe knows a file by its end; write it as {out.with_suffix('.jsonl')}")
    if out.exists():
        raise UserError(f"{out}: is there already; take another name, or remove it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")
    folder = Path(data.name).expanduser()  # or a name on the hub, which is no folder here
    if isinstance(data, DatasetData) and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: the recipe reads all of {folder}, this file would be read too; write it elsewhere")
    notes = out.with_name(f"{out.name}.journal")
    if notes.exists() and not resume:
        raise UserError(f"{notes}: holds answers of before; add --resume to go on with them, or remove it")
    return notes


# ---- asking ----


async def _pinned_model(base: str, adapter: str) -> str:
    """The revision that the adapter is now: all answers are one model's, and the journal names it."""
    async with AsyncClient(**from_environment(os.environ), base=base) as client:
        (model,) = await pinned(client, [adapter])
    return model


async def _ask(
    recipe: Recipe,
    capability: CapabilityConfig,
    prompts: Prompts,
    request: RateRequest,
    journal: Journal,
    pool: RewardPool,
) -> None:
    on_unreadable = capability.data.on_unreadable if isinstance(capability.data, DatasetData) else "error"
    engine_s = limits(recipe).patience_s
    async with AsyncClient(**from_environment(os.environ), base=request.base, engine_s=engine_s) as client:
        with Progress(f"asking {request.capability}", "prompts") as progress:
            progress.show(len(journal.rates), len(prompts))
            await rate(
                client, pool, prompts, request, journal, decode=decoder(recipe),
                deadline_s=capability.reward.deadline_s, on_unreadable=on_unreadable,
                tell=lambda done: progress.show(done, len(prompts)),
            )  # fmt: skip


@contextmanager
def _saying_what_is_left(journal: Journal, count: int) -> Generator[None]:
    """What ends the work early is told together with what is left to do."""
    try:
        yield
    except (UserError, ServiceError, KeyboardInterrupt) as error:
        done = len(journal.rates)
        how = f"{done:,} of {count:,} prompts are answered; the same again with --resume goes on" if done else ""
        if not isinstance(error, KeyboardInterrupt):
            raise UserError("; ".join(filter(None, (str(error), how)))) from None
        # The cli says nothing of Ctrl-C, so this is the only line.
        print(f"stopped: {how or 'nothing is answered yet'}", file=sys.stderr)
        raise


# ---- what is told ----


def lines(name: str, rated: Sequence[PromptRate], bounds: Bounds, prompts: Prompts, samples: int) -> Iterator[str]:
    """How many rows there were and what became of them, and how the rates lie."""
    left_out = prompts.dropped if isinstance(prompts, PromptSet) else Counter[str]()
    fates = Counter(fate(prompt, bounds) for prompt in rated)
    yield f"{name}: {len(rated) + left_out.total():,} rows read, {fates.pop(KEPT, 0):,} kept; dropped:"
    for reason in (NEVER, ALWAYS, *sorted(fates.keys() - {NEVER, ALWAYS})):
        why = Counter(str(prompt.why) for prompt in rated if prompt.lost == reason).most_common(1)
        yield f"{fates[reason]:8,}  {reason}" + (f" ({why[0][1]:,} x {why[0][0]})" if why else "")
    for reason, count in left_out.most_common():
        yield f"{count:8,}  not asked: {reason}"
    cut_off_shares = [prompt.cut_off for prompt in rated if prompt.lost != "unreadable"]
    if cut_off_shares:
        cut_off = sum(cut_off_shares) / len(cut_off_shares)
        yield f"{percent(cut_off)} % of the answers were cut off"
    bars = histogram((prompt.rate for prompt in rated if prompt.rate is not None), samples)
    most = max(count for _, count in bars) or 1  # no bar at all if no prompt has a rate
    yield "pass rate    rows"
    for share, count in bars:
        yield f"{percent(share):>7} %{count:8,}  {'#' * math.ceil(_WIDTH * count / most)}".rstrip()
