"""`coevo rollouts RUN BRANCH STEP`: what a step learnt from, for people: questions, completions, rewards, advantages.

On a terminal each token of a completion that a teacher scored is coloured by teacher minus student: green where the
teacher finds it likelier, red where less, stronger for more. RUN is the folder of a run (`out/NAME`, or `runs/ID`), or
the id of one that the service has (COEVO_SERVICE_URL).
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from adapters.base import locate
from adapters.errors import UserError
from clients.client import AsyncClient, ServiceError, from_environment
from service.rollouts import Record
from service.runs import RECORD, ROLLOUTS
from service.schemas import RecordedCompletion, RecordedPart, StepRollouts
from trainer.recipe.file import load

FULL = 2.0
"""Nats of difference that are the strongest colour: a token seven times as likely to one model as to the other."""
_WIDTH = 140
"""Characters of a line in a file, where no terminal says."""

Decode = Callable[[Sequence[int]], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its id")
    parser.add_argument("branch", metavar="BRANCH")
    parser.add_argument("step", type=int, metavar="STEP", help="the revision that it made")
    parser.add_argument("--part", metavar="NAME", help="native, or a teacher's; all by default")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="after so many prompts of each part [0]")
    parser.add_argument("--prompts", type=int, default=3, metavar="N", help="of each part [3]")
    parser.add_argument("--completions", type=int, default=8, metavar="N", help="of each prompt [8]")
    parser.add_argument("--base", metavar="NAME", help="whose tokenizer tells the tokens; the run's by default")


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.run)
    rollouts, base = _from_folder(folder, arguments) if folder.is_dir() else _from_service(arguments)
    parts = [part for part in rollouts.parts if arguments.part in (None, part.name)]
    if not parts:
        names = ", ".join(part.name for part in rollouts.parts)
        raise UserError(f"--part {arguments.part}: no such part; there are {names}")
    from transformers import AutoTokenizer  # after all that may be wrong: its import takes seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(locate(arguments.base or base))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(Text(f"{rollouts.run}: {rollouts.branch}@{rollouts.step}", style="bold"))
    # All parts, but few prompts of each: a step has hundreds of completions.
    for part in parts:
        reward = rollouts.metrics.get(f"{part.name}/reward")
        for line in lines(part, reward, tokenizer.decode, arguments.completions):
            # In a file a line stays a line, for who searches it.
            console.print(line, soft_wrap=not sys.stdout.isatty())
    return 0


def _from_folder(folder: Path, arguments: argparse.Namespace) -> tuple[StepRollouts, str]:
    """A step's rollouts in `runs/ID`, or in the folder that `coevo run` made; and the run's base."""
    runs = [folder] if (folder / ROLLOUTS).is_dir() else sorted((folder / "runs").glob("*"))
    for run in runs:
        path = run / ROLLOUTS / arguments.branch / f"{arguments.step}{RECORD}"
        if not path.exists():
            continue
        page = Record(path).page(None, arguments.first, arguments.prompts)
        recipe = run.parents[1] / "recipe.json"  # beside `runs`, if `coevo run` made it
        return page, load(recipe).base.name if recipe.exists() else "miniature"
    steps: dict[str, list[int]] = {}
    for path in (path for run in runs for path in run.glob(f"{ROLLOUTS}/*/*{RECORD}")):
        steps.setdefault(path.parent.name, []).append(int(path.stem))
    there = "; ".join(f"{branch} has {', '.join(map(str, sorted(steps[branch])))}" for branch in sorted(steps))
    raise UserError(
        f"{folder}: no rollouts of {arguments.branch}@{arguments.step}; {there or 'name the folder of a run'}"
    )


def _from_service(arguments: argparse.Namespace) -> tuple[StepRollouts, str]:
    async def read() -> tuple[StepRollouts, str]:
        async with AsyncClient(**from_environment(os.environ), timeout_s=30) as client:
            rollouts = await client.rollouts(
                arguments.run, arguments.branch, arguments.step, first=arguments.first, count=arguments.prompts
            )
            return rollouts, (await client.adapters()).base.name

    try:
        return asyncio.run(read())
    except ServiceError as error:
        raise UserError(f"{arguments.run}: neither a folder nor a run of the service: {error}") from None


def lines(part: RecordedPart, reward: float | None, decode: Decode, completions: int) -> Iterator[Text]:
    shown = f"{part.first + 1} to {part.first + len(part.groups)} of {part.num_groups}"
    mean = "" if reward is None else f", mean reward of all {reward:.3f}"
    yield Text(f"\n{part.name}: prompts {shown}{mean}", style="bold")
    for group in part.groups:
        media = f"  ({len(group.media)} media)" if group.media else ""
        yield Text()
        yield Text.assemble((group.question, "cyan"), (f"  = {group.answer}{media}", "dim"))
        for completion in group.completions[:completions]:
            yield completion_line(completion, decode)


def completion_line(completion: RecordedCompletion, decode: Decode) -> Text:
    """Its reward, its mean advantage, its text, and what was wrong with it."""
    reward = " n/a " if completion.reward is None else f"{completion.reward:5.2f}"
    advantages = completion.advantages  # None: nobody could judge it, so it left its group
    advantage = "left " if advantages is None else f"{sum(advantages) / len(advantages):+5.2f}"
    line = Text.assemble("  ", (reward, "yellow"), " ", (advantage, "magenta"), "  ")
    if completion.delta is None:
        line.append(completion.text)
    else:
        # Token by token: half a character is then a replacement character, but each has the colour of its own delta.
        for token_id, delta in zip(completion.token_ids, completion.delta, strict=True):
            line.append(decode([token_id]), style=colour(delta))
    if completion.is_cut_off:
        line.append(" ...", style="dim")
    if completion.why and completion.reward is None:
        line.append(f"  [{completion.why}]", style="red")
    return line


def colour(delta: float) -> str:
    """The style of a token, by teacher minus student in nats."""
    strength = round(min(abs(delta) / FULL, 1.0) * 255)
    if strength < 8:  # nobody sees so pale a colour
        return ""
    pale = 255 - strength
    return f"black on rgb({pale},255,{pale})" if delta > 0 else f"black on rgb(255,{pale},{pale})"
