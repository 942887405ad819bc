"""`coevo bench NAME`: runs one of the measurements here."""

import argparse
from pathlib import Path

from adapters.architectures import read_architecture
from adapters.errors import UserError
from clients.parser import command_of
from service.engine.arguments import LORA_MODULES

NAMES = {
    "branches": "how a run's seconds, memory and publishes grow with 1 to 16 branches on one base",
    "generate": "four models examined on the miniature's questions, beside the engine alone",
    "growth": "how an update's time and memory grow with the group, the prompt and the adapters",
    "gpu": "what a card makes of coevo in ten minutes: engine, exactness, publish, scoring, a run, updates",
    "gpu_step": "one update of a Qwen3-VL-4B on one GPU, beside layers not compiled, padded rows and a dense mask",
    "experts": "each toy capability trained alone through the real service",
    "queue": "claims, publishes and dispatch of the queue with 1 to 64 workers",
    "step": "one training step, beside TRL and PEFT",
    "merge": "three adapters folded into a base of 4 B parameters' shape, beside cp",
    "pipeline": "a run whose next rollouts are made during an update, beside one that does one thing at a time",
    "rewards": "scores of completions a second, beside math-verify",
    "score": "seconds to score a group under several adapters, beside stock vLLM, PEFT and a bare script",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, gloss in NAMES.items():
        # By name: some import torch at their top. These are parsers of `coevo`, which import the one that was typed.
        benches.add_parser(name, help=gloss, description=gloss, module=f"bench.{name}")


def positive(text: str) -> int:
    """A number of rounds, questions or workers: of none there is no median."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"take 1 or more, not {text}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    file: Path | None = arguments.json
    if file and not file.parent.is_dir():  # before minutes are measured, and not after
        raise UserError(f"--json {file}: there is no folder {file.parent}; name a file in a folder that is there")
    return command_of(f"bench.{arguments.bench}").run(arguments)


def add_modules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modules", nargs="+", choices=LORA_MODULES, metavar="NAME",
                        help="projections that adapters have, as lora.modules [all that the base allows]")  # fmt: skip


def modules_of(arguments: argparse.Namespace, base: Path) -> tuple[str, ...]:
    """Those named, or all of the base's. A base that cannot be trained is told here, before minutes are measured."""
    architecture = read_architecture(base)
    return tuple(arguments.modules or architecture.adapter_modules or LORA_MODULES)
