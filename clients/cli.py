"""The `coevo` command: finds the command's module by name and turns its errors into one line.

A command is a module with `add_arguments(parser)` and `run(arguments) -> int`. Only the module of the command that
was typed is imported, and no module here imports torch at its top, so `coevo --help` answers at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from adapters.errors import UserError

COMMANDS = {
    "serve": ("service.command", "the service: one frozen base, many adapters, exact log-probs"),
    "doctor": ("trainer.commands.doctor", "what this machine has; with a recipe, whether it fits"),
    "check": ("trainer.commands.check", "what is wrong with a recipe and its data, before anything starts"),
    "run": ("trainer.commands.run", "a whole run on this machine"),
    "coordinate": (
        "trainer.commands.coordinate",
        "a run's coordinator: enqueues its jobs, retires old revisions",
    ),
    "status": ("trainer.commands.status", "which runs there are, how far they are, who waits for what"),
    "rollouts": ("trainer.commands.rollouts", "what a step learnt from: questions, answers, rewards, advantages"),
    "jobs": ("trainer.commands.jobs", "what is queued, who works on it, what failed for good"),
    "plan": ("trainer.commands.plan", "every step of a recipe before anything runs, and what it costs"),
    "compare": ("trainer.commands.compare", "every system of the paper on one recipe: tables, intervals, report"),
    "eval": ("trainer.commands.eval", "accuracy of branches on held-out questions, with intervals"),
    "filter": ("trainer.commands.filter", "training prompts that the base answers rightly now and then"),
    "publish": ("trainer.commands.publish", "an adapter that PEFT saved, as the next revision of a branch"),
    "merge": ("trainer.commands.merge", "branches folded into one checkpoint, or into one adapter"),
    "bench": ("bench.command", "measurements, each number beside its peer's"),
    "base": ("trainer.commands.base", "the miniature's base: path, build, check"),
    "recipe": (
        "trainer.commands.recipe",
        "what a recipe may say: keys, their defaults and ranges, a schema for editors",
    ),
}


class Command(Protocol):
    """What a command's module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def _module_of(name: str) -> Command:
    return cast(Command, importlib.import_module(COMMANDS[name][0]))


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="coevo", description="LoRA experts that teach each other while they learn.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if word in COMMANDS), None)
    for name, (_, gloss) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=gloss, description=gloss)
        if name == chosen:
            _module_of(name).add_arguments(subparser)
    arguments = parser.parse_args(words)
    try:
        # Not by way of the namespace: there a command's own argument called `run` would take the function's place.
        return _module_of(arguments.command).run(arguments)
    except UserError as error:
        print(f"coevo {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
