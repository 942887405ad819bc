"""`coevo bench NAME`: runs one of the measurements here."""

import argparse
import importlib
from typing import Any

NAMES = {
    "experts": "each toy capability trained alone through the real service",
    "rewards": "scores of completions a second, beside math-verify",
    "score": "seconds to score a group under several adapters, beside stock vLLM, PEFT and a bare script",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benches = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, gloss in NAMES.items():
        module: Any = importlib.import_module(f"bench.{name}")
        bench = benches.add_parser(name, help=gloss, description=gloss)
        module.add_arguments(bench)
        bench.set_defaults(bench_run=module.run)


def run(arguments: argparse.Namespace) -> int:
    return arguments.bench_run(arguments)
