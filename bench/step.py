"""One training step beside TRL's GRPOTrainer with PEFT, on CPU: its update, its memory, and the whole of it.

    coevo bench step [--json FILE] [--rounds 3] [--threads 1]
    coevo bench step --base DIR [--prompts 2] [--tokens 64] [--modules v_proj ...] [--repeats 3] [--sections NAME ...]

The miniature in float32, LoRA of rank 16 on the seven projections, 8 prompts x 8 completions, in processes of their
own (`step_ours`, `step_trl`). Figures are medians of the rounds after a warm-up, ratios are ours / theirs.

update_270_64, update_270_128
    Forward, backward, clip and optimiser, for image prompts of 270 tokens (noise of 512 x 512) and completions of 64 or
    128 random tokens. TRL's is timed inside its `train`, from `_compute_loss` to the end of the step: its completions
    are given, and its pixels are made before that. Ours begins with the encoded pictures.
memory_270_64
    The peak of a fresh trainer's process during its first such update, with all that it held before it. TRL takes all
    64 completions at once, as in the other rows: fewer are no faster. `memory_270_64_by_16`: with 16 at a time.
step_270_64
    Rollouts, rewards, update, and with us the new revision in the service. Every completion has 64 tokens: both sides
    have a copy of the base whose end token is the padding, which it never says. A reward is a bit of the answer's
    checksum, so nearly every group has both.
step_text, step_image
    The same on the miniature's own questions, at most 48 tokens, rewarded when right. A group whose rewards are all
    equal is not computed here, and is by TRL.
copd_step
    Three branches, each with its own questions and those of both others, whose adapters score its answers: the worst
    case, where everybody teaches everybody. With TRL that is a step for each of the nine batches, and for six of them
    its own log-probabilities without gradient under two adapters (`set_adapter`). It has no video: its third branch
    answers image questions. `copd_step_at_once` is that with our three branches at the same time: their rollouts and
    scores together, their updates in turn.

With `--base` another base is measured than the miniature, on questions in words, each with 8 completions of `--tokens`
tokens (both sides have an end token that is never said). A reward is a bit of a checksum, as in `step_270_64`.

words_update, words_memory
    As above; memory is that of the same process during its first update.
words_step, words_copd_step
    A whole step, and one of CoPD, as above.

Beside its own process, with one thread as TRL's, our side has the service's. A step's rollouts are over before its
update begins, so in all rows but the last the engine and the trainer hardly ever compute at the same time. TRL with two
cores to itself is what `--threads 2` measures; the engine keeps one thread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from adapters.base import locate
from bench.command import add_modules, modules_of, positive

PEERS = ("ours", "trl")
SECTIONS = ("update", "memory", "memory_16", "step", "questions")
WORDS = ("words_update", "words_step", "words_copd")
"""The sections with `--base`."""
TARGETS = {
    "update_270_64": 1 / 3,
    "update_270_128": 1 / 1.8,
    "memory_270_64": 0.6,
    "step_270_64": 0.5,
    "copd_step": 0.4,
    "words_update": 0.5,
    "words_memory": 0.5,
    "words_step": 0.5,
    "words_copd_step": 0.4,
}
PARTS = ("generate", "reward", "score", "prepare", "update", "optimiser", "publish", "rest")
"""`optimiser` is within `update`; those of one step may overlap."""


def run(arguments: argparse.Namespace) -> int:
    case = None
    if arguments.base is not None:
        base = locate(arguments.base)
        case = {"base": str(base), "modules": modules_of(arguments, base)}
        case |= {"prompts": arguments.prompts, "tokens": arguments.tokens}
    rows: list[dict[str, Any]] = []
    for section in arguments.sections or (SECTIONS if case is None else WORDS):
        # In turn, and not first all of one peer: what else the machine does then slows both alike.
        pairs = [tuple(_measured(peer, section, case, arguments) for peer in PEERS) for _ in range(arguments.repeats)]
        for label in pairs[0][0]:
            rows.append(_row(label, [tuple(measured[label] for measured in pair) for pair in pairs]))
            _print(rows[-1], *(figures[label] for figures in pairs[-1]))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _measured(
    peer: str, section: str, case: dict[str, Any] | None, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    settings = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", f"bench.step_{peer}", section, str(arguments.rounds)]
    command += [] if case is None else [json.dumps(case)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def _row(label: str, pairs: list[tuple[dict[str, float], ...]]) -> dict[str, Any]:
    """Medians of all pairs; of the ratios, too, which is not the ratio of the medians."""
    name, unit = ("peak", "MiB") if "memory" in label else ("whole", "s")
    row: dict[str, Any] = {"what": label, "unit": unit, **_compared(name, pairs), "peer": "trl"}
    if unit == "s":
        row["cpu"] = _compared("cpu", pairs)
    return row


def _compared(name: str, pairs: list[tuple[dict[str, float], ...]]) -> dict[str, float]:
    coevo, trl = ([figures[name] for figures in side] for side in zip(*pairs, strict=True))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(coevo, trl, strict=True))
    return {"ours": statistics.median(coevo), "theirs": statistics.median(trl), "ratio": ratio}


def _print(row: dict[str, Any], coevo: dict[str, float], trl: dict[str, float]) -> None:
    target = f" (at most {TARGETS[row['what']]:.3f})" if row["what"] in TARGETS else ""
    print(f"{row['what']}: {row['ours']:.3f} {row['unit']}, trl {row['theirs']:.3f}, ratio {row['ratio']:.3f}{target}")
    if "cpu" in row:
        cpu = row["cpu"]
        print(f"    of CPU {cpu['ours']:.3f} s, trl {cpu['theirs']:.3f}, ratio {cpu['ratio']:.3f}")
    print(f"    ours: {_description(row, coevo)}\n    trl:  {_description(row, trl)}", flush=True)


def _description(row: dict[str, Any], figures: dict[str, float]) -> str:
    if row["unit"] == "MiB":
        return f"{figures['before']:.0f} MiB before the update"
    parts = [f"{name} {figures[name]:.3f}" for name in PARTS if name in figures]
    words = {"rollouts": "rollouts", "length": "tokens each",
             "decided": "of the groups all equal"}  # fmt: skip
    return ", ".join([*parts, *(f"{figures[name]:.4g} {text}" for name, text in words.items() if name in figures)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument("--repeats", type=positive, default=1, metavar="N", help="pairs of processes, in turn [1]")
    parser.add_argument("--base", metavar="NAME", help="measure on this base instead of the miniature")
    parser.add_argument("--prompts", type=positive, default=2, metavar="N", help="with --base, in a step [2]")
    parser.add_argument("--tokens", type=positive, default=64, metavar="N", help="with --base, of a completion [64]")
    add_modules(parser)
    parser.add_argument("--sections", nargs="+", choices=(*SECTIONS, *WORDS), metavar="NAME",
                        help=f"parts of it: {', '.join((*SECTIONS, *WORDS))} [those of the base]")  # fmt: skip
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of either trainer")
