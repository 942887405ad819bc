"""Each toy capability trained alone through the real service: is the miniature an instrument?

    coevo bench experts [--json FILE] [--picture FILE] [--steps 100] [--seeds 3]

Plain GRPO, 8 prompts x 8 completions a step. Then every expert on every capability's held-out questions, greedy and
sampled, the same with another question's image or video (an expert that looks must fall to the blind level there),
and the best answers that look at nothing. The experts of one seed run together: while one updates, the others' rollouts
are made.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.command import positive
from bench.served import served

CAPABILITIES = ("text", "image", "video")
SERVICE = ("--max-model-len=209", "--max-lora-rank=16", "--max-loras=12", "--max-num-seqs=64")
Curves = dict[tuple[int, str], list[float]]


def run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for the engine, one for the trainer
    from trainer.rewards.pool import RewardPool

    with RewardPool(num_children=1) as pool, served(*SERVICE) as url:
        began = time.monotonic()
        curves, table = asyncio.run(_measure(url, pool, arguments))
    rows = [*_rows(table), {"what": "experts_seconds", "unit": "s", "ours": time.monotonic() - began}]
    _print(table, arguments.seeds)
    if arguments.json:
        curve_rows = [
            {"what": f"curve_{name}_{seed}", "unit": "reward", "ours": c} for (seed, name), c in curves.items()
        ]
        arguments.json.write_text(json.dumps([*rows, *curve_rows], indent=1) + "\n")
    if arguments.picture:
        _draw(curves, table, arguments.picture)
    return 0


async def _measure(url: str, pool: Any, arguments: argparse.Namespace) -> tuple[Curves, dict[str, list[float]]]:
    import torch

    from adapters.base import locate
    from adapters.manifest import base_digest
    from clients.client import AsyncClient
    from trainer.recipe.file import load
    from trainer.update.learner import Learner
    from trainer.update.policy import load_policy

    torch.set_num_threads(1)
    recipe, folder = load(Path("miniature")), locate("miniature")
    policy = load_policy(folder, dtype="float32")
    table: dict[str, list[float]] = {}
    curves: Curves = {}
    async with AsyncClient(url, base=base_digest(folder)) as client:
        await _score(client, pool, "base", "base", 0, arguments.questions, table)
        for seed in range(arguments.seeds):
            learner = Learner(policy, base=base_digest(folder), seed=seed, lora=recipe.lora, loss=recipe.loss,
                              optimiser=recipe.optimiser, budget=recipe.budget.tokens_per_micro_batch)  # fmt: skip
            context, turn = _context(client, pool, seed, recipe), asyncio.Lock()
            experts = {name: f"s{seed}-{name}" for name in CAPABILITIES}
            reward_curves = await asyncio.gather(
                *(_train(context, learner, turn, name, experts[name], arguments.steps) for name in CAPABILITIES)
            )
            curves |= {(seed, name): curve for name, curve in zip(CAPABILITIES, reward_curves, strict=True)}
            for name in CAPABILITIES:
                await _score(client, pool, experts[name], name, seed, arguments.questions, table)
                policy.adapters.remove(experts[name])
    return curves, table


def _context(client: Any, pool: Any, seed: int, recipe: Any) -> Any:
    from trainer.loop import StepContext, TrainingSet

    data = {name: TrainingSet(_prompts(name, "train", seed, 2000), _rule(), 60.0) for name in CAPABILITIES}
    return StepContext(client, pool, data, _decoder(), seed, recipe.rollout, recipe.loss)


async def _train(context: Any, learner: Any, turn: asyncio.Lock, name: str, branch: str, steps: int) -> list[float]:
    from trainer.loop import train_step
    from trainer.plan.steps import Step

    await context.client.fork(branch, "base")
    rewards: list[float] = []
    for number in range(1, steps + 1):
        step = Step(branch, number, capabilities=(name,))
        result = await train_step(step, context, learner, slot=lambda: turn)
        batch, update = result.batch, result.update
        rewards.append(batch.metrics["native/reward"])
        if number % 10 == 0:
            metrics = {key: round(value, 4) for key, value in {**batch.metrics, **update.metrics}.items()}
            names = ("reward", "length", "entropy", "mismatch", "grad_norm")
            shown = {metric: metrics.get(f"native/{metric}") for metric in names}
            print(branch, number, shown, update.skipped or "", flush=True)
        if number > 4:
            await context.client.retire(branch, number - 4)
    return rewards


async def _score(
    client: Any, pool: Any, adapter: str, row: str, seed: int, count: int, table: dict[str, list[float]]
) -> None:
    """Adds accuracies under `ROW CAPABILITY WAY`."""
    for name in CAPABILITIES:
        prompts = _prompts(name, "validation", 1000 + seed, count)
        ways = {"greedy": (prompts, 0.0, 1), "sampled": (prompts, 1.0, 4)}
        if name != "text":
            ways["swapped"] = (_swapped(prompts), 0.0, 1)
        for way, (way_prompts, temperature, n) in ways.items():
            accuracy = await _accuracy(client, pool, adapter, way_prompts, temperature, n)
            table.setdefault(f"{row} {name} {way}", []).append(accuracy)


async def _accuracy(client: Any, pool: Any, adapter: str, prompts: Sequence[Any], temperature: float, n: int) -> float:
    from trainer.rollout.sample import judge, sample

    seeds = list(range(0, 1000 * len(prompts), 1000))
    rollouts = await sample(client, adapter, prompts, n=n, max_tokens=48, seeds=seeds, decode=_decoder(),
                            temperature=temperature)  # fmt: skip
    judged = await asyncio.to_thread(judge, rollouts, pool, _rule(), 60.0)
    return statistics.fmean(completion.reward or 0.0 for rollout in judged for completion in rollout.completions)


def _swapped(prompts: Sequence[Any]) -> list[Any]:
    """Every question with the media of the next one that has another answer."""
    donors = [next(donor for donor in [*prompts[number + 1 :], *prompts] if donor.answer != prompt.answer)
              for number, prompt in enumerate(prompts)]  # fmt: skip
    return [replace(prompt, images=donor.images, videos=donor.videos) for prompt, donor in
            zip(prompts, donors, strict=True)]  # fmt: skip


def _prompts(name: str, split: Any, seed: int, count: int) -> Any:
    from trainer.data.generated import prompts

    return prompts(name, label=name, split=split, size=count, seed=seed)


def _rule() -> Any:
    from trainer.rewards import Rule

    return Rule("exact")


def _decoder() -> Any:
    from functools import partial

    from transformers import AutoTokenizer

    from adapters.base import locate

    return partial(AutoTokenizer.from_pretrained(locate("miniature")).decode, skip_special_tokens=True)


def _rows(table: dict[str, list[float]]) -> Iterator[dict[str, Any]]:
    for key, values in table.items():
        row, capability, way = key.split()
        base_accuracy = statistics.fmean(table[f"base {capability} {way}"])
        accuracy = statistics.fmean(values)
        yield {"what": f"expert_{row}_on_{capability}_{way}", "unit": "accuracy", "ours": accuracy, "peer": "base",
               "theirs": base_accuracy, "ratio": accuracy / base_accuracy if base_accuracy else None,
               "seeds": values}  # fmt: skip


def _print(table: dict[str, list[float]], seeds: int) -> None:
    print(f"accuracy in %, mean of {seeds} seeds: greedy / sampled / greedy with another question's media")
    for row in ("base", *CAPABILITIES):
        cells: list[str] = []
        for name in CAPABILITIES:
            ways = [table.get(f"{row} {name} {way}") for way in ("greedy", "sampled", "swapped")]
            cells.append(" / ".join(f"{100 * statistics.fmean(way):.1f}" if way else "-" for way in ways))
        print(f"{row:>8}  " + "   ".join(f"{name}: {cell:<20}" for name, cell in zip(CAPABILITIES, cells, strict=True)))


def _draw(curves: Curves, table: dict[str, list[float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(CAPABILITIES), figsize=(12, 3.4), sharey=True, layout="constrained")
    for axis, name in zip(axes, CAPABILITIES, strict=True):
        for (seed, capability), rewards in curves.items():
            if capability == name:
                smooth = [statistics.fmean(rewards[max(0, at - 9) : at + 1]) for at in range(len(rewards))]
                axis.plot(range(1, len(smooth) + 1), smooth, label=f"seed {seed}")
        for way, style in (("greedy", "--"), ("sampled", ":")):
            axis.axhline(
                statistics.fmean(table[f"base {name} {way}"]), color="grey", linestyle=style, label=f"base, {way}"
            )
        axis.set_title(f"{name} expert: reward of its training rollouts")
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curves into this file")
    parser.add_argument("--steps", type=positive, default=100, metavar="N")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N")
    parser.add_argument(
        "--questions", type=positive, default=256, metavar="N", help="held-out questions of a capability"
    )
