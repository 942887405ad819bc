"""`coevo rollouts RUN BRANCH STEP`: what a step learnt from, for people: questions, completions, rewards, advantages.

On a terminal each token of a completion that a teacher scored is coloured by teacher minus student: green where the
teacher finds it likelier, red where less, stronger for more. RUN is the folder of a run (`out/NAME`, or `runs/ID`), or
the id of one that the service has (COEVO_SERVICE_URL).
"""

import argparse
import gzip
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from adapters.base import locate
from adapters.errors import UserError
from clients.client import Client, ServiceError, from_environment
from service.schemas import RecordedCompletion, RecordedGroup, RecordedPart, StepRollouts

FULL = 2.0
"""Nats of difference that are the strongest colour."""
_WIDTH = 140  # in a file

Pieces = Callable[[Sequence[int]], list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its id")
    parser.add_argument("branch", metavar="BRANCH")
    parser.add_argument("step", type=int, metavar="STEP", help="the revision that it made")
    parser.add_argument("--part", metavar="NAME", help="native, or a teacher's; all by default")
    parser.add_argument("--prompts", type=int, default=3, metavar="N", help="of each part [3]")
    parser.add_argument("--completions", type=int, default=8, metavar="N", help="of each prompt [8]")
    parser.add_argument("--base", metavar="NAME", help="whose tokenizer tells the tokens; the run's by default")


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.run)
    found, base = _from_folder(folder, arguments) if folder.is_dir() else _from_service(arguments)
    parts = [part for part in found.parts if arguments.part in (None, part.name)]
    if not parts:
        raise UserError(f"--part {arguments.part}: no such part; there are {', '.join(p.name for p in found.parts)}")
    pieces = _pieces(arguments.base or base)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(Text(f"{found.run}: {found.branch}@{found.step}", style="bold"))
    for part in parts:
        for line in lines(part, pieces, arguments.prompts, arguments.completions):
            console.print(line, soft_wrap=not sys.stdout.isatty())
    return 0


def _from_folder(folder: Path, arguments: argparse.Namespace) -> tuple[StepRollouts, str]:
    """Of `runs/ID`, or of the folder that `coevo run` made."""
    runs = [folder] if (folder / "rollouts").is_dir() else sorted((folder / "runs").glob("*"))
    for one in runs:
        path = one / "rollouts" / arguments.branch / f"{arguments.step}.json.gz"
        if path.exists():
            return StepRollouts.model_validate_json(gzip.decompress(path.read_bytes())), _base_of(one)
    there = sorted({path.parent.name for one in runs for path in one.glob("rollouts/*/*.json.gz")})
    raise UserError(
        f"{folder}: no rollouts of {arguments.branch}@{arguments.step}; "
        + (f"there are some of {', '.join(there)}" if there else "name a run's folder")
    )


def _base_of(run: Path) -> str:
    recipe = run.parents[1] / "recipe.json"
    if not recipe.exists():
        return "miniature"
    from trainer.recipe.file import load

    return load(recipe).base.name


def _from_service(arguments: argparse.Namespace) -> tuple[StepRollouts, str]:
    service = from_environment(os.environ)
    try:
        with Client(str(service["url"]), api_key=service["api_key"], timeout_s=30) as client:
            return client.rollouts(arguments.run, arguments.branch, arguments.step), client.adapters().base.name
    except ServiceError as error:
        raise UserError(f"{arguments.run}: neither a folder nor a run of the service: {error}") from None


def _pieces(base: str) -> Pieces:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(locate(base))
    return lambda ids: [tokenizer.decode([one]) for one in ids]


def lines(part: RecordedPart, pieces: Pieces, prompts: int, completions: int) -> Iterator[Text]:
    rewards = [one.reward for group in part.groups for one in group.completions if one.reward is not None]
    mean = f"{sum(rewards) / len(rewards):.3f}" if rewards else "-"
    count = sum(len(group.completions) for group in part.groups)
    yield Text(f"\n{part.name}: {len(part.groups)} prompts, {count} completions, mean reward {mean}", style="bold")
    for group in part.groups[:prompts]:
        yield Text()
        yield _question(group)
        for one in group.completions[:completions]:
            yield _completion(one, pieces)


def _question(group: RecordedGroup) -> Text:
    media = f"  ({len(group.media)} media)" if group.media else ""
    return Text.assemble((group.question, "cyan"), (f"  = {group.answer}{media}", "dim"))


def _completion(one: RecordedCompletion, pieces: Pieces) -> Text:
    reward = " n/a " if one.reward is None else f"{one.reward:5.2f}"
    advantage = "left " if one.advantages is None else f"{sum(one.advantages) / len(one.advantages):+5.2f}"
    line = Text.assemble("  ", (reward, "yellow"), " ", (advantage, "magenta"), "  ")
    if one.delta is None:
        line.append(one.text)
    else:
        for piece, delta in zip(pieces(one.token_ids), one.delta, strict=True):
            line.append(piece, style=colour(delta))
    if one.is_cut_off:
        line.append(" ...", style="dim")
    if one.why and one.reward is None:
        line.append(f"  [{one.why}]", style="red")
    return line


def colour(delta: float) -> str:
    """Of a token by teacher minus student."""
    strength = round(min(abs(delta) / FULL, 1.0) * 255)
    if strength < 8:
        return ""
    return f"black on rgb({255 - strength},255,{255 - strength})" if delta > 0 else (
        f"black on rgb(255,{255 - strength},{255 - strength})"
    )  # fmt: skip
