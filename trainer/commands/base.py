"""`coevo base`: where a base lies, bases that are made here, and what a base of the miniature can do."""

import argparse
import json
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from adapters.architectures import read_architecture
from adapters.base import locate
from adapters.errors import UserError
from adapters.precision import dtype_here
from trainer.miniature.question import LEVELS
from trainer.miniature.words import without_words
from trainer.realbase.cache import BASE, REAL, cached
from trainer.realbase.settings import RealSettings
from trainer.reporting.percent import percent
from trainer.reporting.progress import Progress

THREADS = min(4, os.cpu_count() or 1)
"""Torch would take all cores, for operations that are too small to share among many."""
SHIPPED = ("text", "image", "video")
"""What the shipped base has learnt."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    path = actions.add_parser("path", help="print the folder of a base")
    path.add_argument("name", nargs="?", default="miniature", help="miniature, real, a folder, or a hub name")

    build = actions.add_parser("build", help="train the miniature's base (minutes on two cores), or the real one")
    build.add_argument("name", nargs="?", default="miniature", help="miniature or real [miniature]")
    build.add_argument("--out", type=Path, metavar="DIR", help="a folder that does not exist yet [real: in the cache]")
    build.add_argument("--capabilities", nargs="+", metavar="NAME", help=f"of a miniature [{' '.join(SHIPPED)}]")
    build.add_argument(
        "--conflict", type=float, default=1.0, help="0: one style is reliable everywhere; 1: each its own"
    )
    build.add_argument("--steps", type=int, help="training steps [for each capability as many as the shipped base's]")
    build.add_argument("--seed", type=int, default=0)

    untrained = actions.add_parser("untrained", help="make a base with Qwen3-VL's vocabulary that has learnt nothing")
    untrained.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    untrained.add_argument("--seed", type=int, default=0)

    smollm2 = actions.add_parser("smollm2", help="make a base of SmolLM2-135M-Instruct, a real language model")
    smollm2.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    smollm2.add_argument("--text-only", action="store_true", help="the Llama that it is, without a vision tower")
    smollm2.add_argument("--steps", type=int, default=800, help="steps in which the tower learns to read digits [800]")

    check = actions.add_parser("check", help="accuracy by capability and level, beside the blind levels")
    check.add_argument("--base", default="miniature", metavar="NAME", help="miniature, real, or a folder of build's")
    check.add_argument("--capabilities", nargs="+", default=SHIPPED, metavar="NAME", help=f"[{' '.join(SHIPPED)}]")
    check.add_argument("--split", choices=("train", "validation", "test"), default="validation")
    check.add_argument("--questions", type=int, metavar="N", help="questions a level [256; of a real base 48]")
    check.add_argument("--samples", type=int, default=8, metavar="N", help="samples a question")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "path":
        print(locate(arguments.name))
        return 0
    return {"build": _build, "untrained": _untrained, "smollm2": _smollm2, "check": _check}[arguments.action](arguments)


def _build(arguments: argparse.Namespace) -> int:
    import torch  # here, as below: `coevo base path` answers at once

    from adapters.merge import appearing
    from trainer.miniature.build import Habits, Training, build, save
    from trainer.miniature.capabilities import capability

    if not 0 <= arguments.conflict <= 1:
        raise UserError(f"--conflict {arguments.conflict}: it is a number from 0 (none) to 1 (strong)")
    if arguments.name == REAL:
        return _build_real(arguments)
    if arguments.name != "miniature":
        raise UserError(f"{arguments.name}: no base that is built here; there are miniature and real")
    out: Path | None = arguments.out
    if out is None:
        raise UserError("--out: missing; name a folder that does not exist yet")
    capabilities = [capability(name) for name in arguments.capabilities or SHIPPED]
    # Steps go round among the capabilities, so that more of them need more steps.
    steps = arguments.steps or round(Training().steps * len(capabilities) / len(SHIPPED))
    training = Training(seed=arguments.seed, steps=steps)
    torch.set_num_threads(THREADS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as draft:  # before the training: a folder that is there is told at once
        with Progress("training the base", "steps") as progress:
            model, processor = build(capabilities, Habits(conflict=arguments.conflict), training, progress.show)
        save(model, processor, draft)
    print(f"base: {out}")
    return 0


def _build_real(arguments: argparse.Namespace) -> int:
    if arguments.capabilities:
        raise UserError("--capabilities: the real base has always text, image and video; leave it out")
    settings = RealSettings(conflict=arguments.conflict, seed=arguments.seed)
    if arguments.steps:
        settings = replace(settings, steps=arguments.steps)
    folder = arguments.out or cached(settings)
    if arguments.out is None and folder.exists():
        print(f"base: {folder}, built before")
        return 0
    make_real(folder, settings)
    return 0


def make_real(folder: Path, settings: RealSettings) -> None:
    """Builds the real base in this folder and says how long that takes; one that was stopped goes on."""
    from trainer.realbase.package import package_folder

    package_folder()  # before torch and a folder: what is missing is told at once
    import torch

    from adapters.merge import check_new
    from trainer.realbase.build import build_real
    from trainer.realbase.embed import MODULES

    folder.parent.mkdir(parents=True, exist_ok=True)
    check_new(folder)
    torch.set_num_threads(THREADS)
    print("building the real base, about 40 minutes on two cores; stopped, the same command goes on", flush=True)
    build_real(folder, settings, _shown)
    print(f"base: {folder}, in float32; its adapters: lora.modules={json.dumps(MODULES)}")


def make_at_first_use(name: str) -> None:
    """Builds the base of this name where it is one that is built here and is not yet."""
    if name == REAL and not BASE.exists():
        make_real(BASE, RealSettings())


@contextmanager
def _shown(work: str) -> Generator[Callable[[int, int], None]]:
    with Progress(work, "steps") as progress:
        yield progress.show


def _untrained(arguments: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from adapters.merge import appearing
    from trainer.miniature.build import save
    from trainer.miniature.untrained import build_untrained

    disable_progress_bar()  # one of a single shard
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(arguments.out) as draft:
        save(*build_untrained(arguments.seed), draft)
    print(f"base: {arguments.out}, untrained: it answers with random tokens; for a recipe: base.name={arguments.out}")
    return 0


def _smollm2(arguments: argparse.Namespace) -> int:
    if arguments.steps < 1:
        raise UserError(f"--steps {arguments.steps}: the tower needs one at least; leave it out, or take --text-only")
    from trainer.realbase.package import package_folder

    package_folder()  # before torch and a folder: what is missing is told at once
    from adapters.merge import appearing
    from trainer.realbase.build import build_seeing, build_text
    from trainer.realbase.embed import MODULES
    from trainer.realbase.sight import SightTraining

    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as draft:
        if arguments.text_only:
            build_text(draft)
        else:
            with Progress("learning to read digits", "steps") as progress:
                build_seeing(draft, SightTraining(steps=arguments.steps), progress.show)
    print(f"base: {out}, in float32; for a recipe: base.name={out} base.dtype=float32")
    if not arguments.text_only:
        print(f"its adapters: lora.modules={json.dumps(MODULES)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    folder = locate(arguments.base)  # before torch: a name that is none is told at once
    import torch
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    from trainer.data.generated import generated
    from trainer.miniature.check import LevelAccuracy, check

    kind = "real" if read_architecture(folder).adapter_modules else "miniature"
    capabilities = [generated(name, kind) for name in arguments.capabilities]
    # A real model takes as long for 48 questions as the miniature for thousands.
    questions = (48 if kind == "real" else 256) if arguments.questions is None else arguments.questions
    if questions < 1 or arguments.samples < 1:
        raise UserError("--questions and --samples must be at least 1")
    if missing := without_words(folder, arguments.capabilities if kind == "miniature" else ()):
        raise UserError(f"--base {arguments.base} has no words for {', '.join(missing)}; take one built with them")
    torch.set_num_threads(THREADS)
    # The real base as a run computes it here; a miniature is as fast in float32.
    dtype = dtype_here("auto") if kind == "real" else "float32"
    # transformers and not vLLM: no engine is needed to see what a base can do.
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    processor = Qwen3VLProcessor.from_pretrained(folder)
    table = Table(
        title=f"{arguments.base}: {questions} {arguments.split} questions a level, accuracy in %",
        caption="swapped: greedy with another question's media; guess, constant: the best answers without looking",
    )
    passed = f"pass@{arguments.samples}"
    for column in ("capability", "level", "greedy", "sampled", passed, "swapped", "guess", "constant"):
        table.add_column(column, justify="left" if column == "capability" else "right")
    rows = check(model, processor, capabilities, split=arguments.split, count=questions, n=arguments.samples)
    total = len(capabilities) * (len(LEVELS) + 1)
    with Progress("asking", "rows") as progress:
        measured: list[LevelAccuracy] = []
        progress.show(0, total)
        for row in rows:
            measured.append(row)
            progress.show(len(measured), total)
    for row in measured:
        figures = (row.greedy, row.sampled, row.passed, row.swapped, row.guess, row.constant)
        name, level = (row.capability, str(row.level)) if row.level else (f"[bold]{row.capability}[/bold]", "all")
        table.add_row(name, level, *map(percent, figures), end_section=not row.level)
    Console().print(table)
    return 0
