"""The `coevo` command: finds the command's module by name and turns its errors into one line.

A command is a module with `add_arguments(parser)` and `run(arguments) -> int`. Only the module of the command that
was typed is imported, and it imports torch, transformers and `datasets` inside `run`, so that help and mistakes are
told at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from adapters.errors import UserError
from clients.parser import Parser, command_of

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
    "look": ("trainer.commands.look", "a run in the browser, to read: a folder, or a running service"),
    "rollouts": ("trainer.commands.rollouts", "what a step learnt from: questions, answers, rewards, advantages"),
    "jobs": ("trainer.commands.jobs", "what is queued, who works on it, what failed for good"),
    "plan": ("trainer.commands.plan", "every step of a recipe before anything runs, and what it costs"),
    "compare": ("trainer.commands.compare", "every system of the paper on one recipe: tables, intervals, report"),
    "eval": ("trainer.commands.eval", "accuracy of branches on held-out questions, with intervals"),
    "filter": ("trainer.commands.filter", "training prompts that the base answers rightly now and then"),
    "publish": ("trainer.commands.publish", "an adapter that PEFT saved, as the next revision of a branch"),
    "retire": ("trainer.commands.retire", "a mistaken head made good: the branch goes on from an earlier revision"),
    "merge": ("trainer.commands.merge", "branches folded into one checkpoint, or into one adapter"),
    "bench": ("bench.command", "measurements, each number beside its peer's"),
    "base": ("trainer.commands.base", "the miniature's base: path, build, check"),
    "recipe": (
        "trainer.commands.recipe",
        "what a recipe may say: keys, their defaults and ranges, a schema for editors",
    ),
    "recipes": ("trainer.commands.recipes", "the recipes that come with coevo, by name"),
}
SHELLS = ("bash", "fish", "tcsh", "zsh")
"""Shells that are completed; named here because shtab, which has a script for each, is imported for that alone."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # for this alone

        print(f"coevo {version('coevo')}")
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: object, values: object, __: object = None) -> None:
        assert isinstance(parser, Parser)
        print(parser.completion(str(values)))
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="coevo", description="LoRA experts that teach each other while they learn.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    completion = "print a script that completes commands and flags in this shell"
    parser.add_argument("--print-completion", action=_Completion, choices=SHELLS, help=completion)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, gloss) in COMMANDS.items():
        subparsers.add_parser(name, help=gloss, description=gloss, module=module)
    arguments = parser.parse_args(argv)
    try:
        # Not by way of the namespace: there a command's own argument called `run` would take the function's place.
        status = command_of(COMMANDS[arguments.command][0]).run(arguments)
        sys.stdout.flush()  # a reader that has left is noticed here, and not at the interpreter's end
        return status
    except UserError as error:
        print(f"coevo {arguments.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `coevo plan RECIPE | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
