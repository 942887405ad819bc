"""Seconds to score a group under several adapters: the service beside stock vLLM, transformers, and a bare script.

    coevo bench score [--json FILE] [--rounds 7]
    coevo bench score --base DIR [--modules v_proj ...]

A group is 8 completions of 64 tokens after one image prompt of 270 tokens, scored by 3 adapters, on the miniature.
Every round has a new image and new completions, so no cache knows them. The peers, each in a process of its own:

stock     vLLM as it is: its CPU LoRA, default settings of `prompt_logprobs`, one adapter after another
hf        transformers with PEFT, `set_adapter`, the eight completions in one padded batch
engine    the best script by hand: AsyncLLM with our kernel, all adapters at once, prefix cache on
service   ours, over HTTP, answers as safetensors

and for the service 1, 2, 4, 8 and 16 adapters. Figures are medians of the rounds after the first. All compute in the
type that the service takes on this machine.

With `--base` another base is measured, with a question in words instead of the image, and up to 4 adapters. Medians
then come with those of the CPU's seconds, of all processes of a peer: where other programs run, they are fairer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.base import locate
from bench.command import add_modules, modules_of, positive
from bench.score_peers import PEERS, Case, Medians, save_adapters

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def measure(peer: str, case: Case) -> Medians:
    """In a process of its own; the stock engine without our plugin."""
    plugins = {"VLLM_PLUGINS": "none"} if peer == "stock" else {}
    command = [sys.executable, "-m", "bench.score_peers", peer, json.dumps(asdict(case))]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT | plugins, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace) -> int:
    modules = modules_of(arguments, locate(arguments.base))
    with tempfile.TemporaryDirectory() as folder:
        case = Case(arguments.base, modules, folder, arguments.rounds)
        save_adapters(case.base, case.adapters, modules=case.modules, std=0.02)
        medians: Medians = {}
        for peer in PEERS:
            medians |= measure(peer, case)
    service = medians.pop("score_service")
    first = medians["score_growth_1"]
    rows = [
        _row(name, seconds, "score_growth_1", first)
        if "growth" in name
        else _row(name, service, name.removeprefix("score_"), seconds)
        for name, seconds in medians.items()
    ]
    for row in rows:
        print(f"{row['what']}: {row['ours']:.3f} s, {row['peer']} {row['theirs']:.3f} s, ratio {row['ratio']:.3f}")
        if case.in_words:
            print("    of CPU {ours:.3f} s and {theirs:.3f} s, ratio {ratio:.3f}".format(**row["cpu"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _row(label: str, value: tuple[float, float], peer: str, peer_value: tuple[float, float]) -> dict[str, Any]:
    (wall, cpu), (peer_wall, peer_cpu) = value, peer_value
    row: dict[str, Any] = {"what": label, "unit": "s", "ours": wall, "peer": peer, "theirs": peer_wall}
    return row | {"ratio": wall / peer_wall, "cpu": {"ours": cpu, "theirs": peer_cpu, "ratio": cpu / peer_cpu}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="after a first [7]")
    parser.add_argument("--base", default="miniature", metavar="NAME", help="miniature, a folder or a hub name")
    add_modules(parser)
