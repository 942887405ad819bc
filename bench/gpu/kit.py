"""What a card makes of coevo, in ten minutes: one command, `kit.json` with all numbers and `kit.md` to read.

    coevo bench gpu [--out DIR] [--seconds 600]        or: python -m bench.gpu

Its parts, in the order of their worth:

    engine     a base of Qwen3-VL-4B's shape with random weights, and the service that has loaded it
    scores     of the service beside the trainer's own (transformers): the base and an adapter of rank 64
    scoring    tokens a second, of a group that no cache knows
    run        one cycle of CoPD with three branches: queue, service, coordinator and worker, as in any run
    update     seconds, MFU and memory of an update, layers and attention in several ways (`gpu_step`)

It runs unattended and offline. A part that may not end within `--seconds` is skipped, one that fails says so and leaves
the others; both files are whole after each part. `--tiny` takes the miniature's shape on a CPU: does it all run?
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import locate
from adapters.errors import UserError
from adapters.precision import dtype_here
from bench.branches import steps_of
from bench.command import positive
from bench.gpu.page import page
from bench.served import served

BRANCH, RANK = "kit", 64
CHANGES = ("method.cycles=1", "method.rlvr_steps=1", "method.opd_steps=1", "evaluation.overlap_prompts=0")
CHANGES_ON_A_CARD = (
    "base.dtype=bfloat16", f"lora.rank={RANK}", "rollout.max_prompt_tokens=1024", "rollout.max_completion_tokens=512",
    "engine.kv_cache_gib=16", "engine.max_num_batched_tokens=8192", "budget.tokens_per_micro_batch=16384",
)  # fmt: skip
CHANGES_IF_TINY = ("rollout.prompts=2", "rollout.group_size=4")
ROUNDS = 4
"""Publishes and groups that are timed; the first warms up."""

Row = dict[str, Any]


@dataclass(slots=True, eq=False)
class Kit:
    folder: Path
    is_tiny: bool
    deadline: float
    rows: list[Row] = field(default_factory=list[Row])
    troubles: list[str] = field(default_factory=list[str])
    """Parts that were skipped or failed, a line each."""
    processes: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """The queue's server and the service, for as long as parts need them."""

    @property
    def device(self) -> str:
        return "cpu" if self.is_tiny else "cuda"

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"


def row(label: str, unit: str, value: float, peer: str = "none", peer_value: float | None = None) -> Row:
    ratio = value / peer_value if peer_value else None
    return {"what": f"gpu: {label}", "unit": unit, "ours": value, "peer": peer, "theirs": peer_value, "ratio": ratio}


# ---- engine ----


def engine(kit: Kit) -> Iterator[Row]:
    from clients.address import URL_VARIABLE
    from trainer.queue import server as queue_server

    began = time.monotonic()
    parameters = make_base(kit.base, is_tiny=kit.is_tiny)
    yield row(f"random base of {parameters:,} parameters, written", "s", time.monotonic() - began)
    write_recipe(kit)
    queue = kit.processes.enter_context(queue_server.start(kit.folder / "queue"))
    os.environ[queue_server.URL_VARIABLE] = queue.url
    began = time.monotonic()
    os.environ[URL_VARIABLE] = kit.processes.enter_context(served(str(kit.recipe), f"--runs={kit.runs}"))
    yield row("service started, its engine has scored", "s", time.monotonic() - began)


def make_base(folder: Path, *, is_tiny: bool) -> int:
    """A checkpoint of the 4B's shape, or the miniature's, with weights drawn anew and the miniature's tokenizer."""
    import torch
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig

    from bench.gpu_lab import QWEN3_VL_4B

    miniature = locate("miniature")
    config = json.loads((miniature / "config.json").read_text())
    if is_tiny:
        config["text_config"]["vocab_size"] *= 2  # as the 4B's: more tokens than its tokenizer knows
    else:
        for part, values in QWEN3_VL_4B.items():
            config[part] = config[part] | values if isinstance(values, dict) else values
    torch.manual_seed(0)
    with torch.device("cpu" if is_tiny else "cuda"):
        model: Any = AutoModelForImageTextToText.from_config(
            Qwen3VLConfig(**config), dtype=torch.float32 if is_tiny else torch.bfloat16
        )
    model.save_pretrained(folder)
    for file in miniature.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    return sum(parameter.numel() for parameter in model.parameters())


def write_recipe(kit: Kit) -> None:
    """The miniature's, on the new base: its questions have the lengths of nothing, but their pictures are real."""
    from trainer.recipe.file import load

    changes = [*CHANGES, *(CHANGES_IF_TINY if kit.is_tiny else CHANGES_ON_A_CARD), f"base.name={kit.base.resolve()}"]
    kit.recipe.write_text(load(Path("miniature"), changes).model_dump_json())


# ---- scores, publish ----


def scores(kit: Kit) -> Iterator[Row]:
    import torch

    from service.schemas import LogprobsRequest, Sequence
    from trainer.parts import Completion, Prompt, Rollout
    from trainer.recipe.file import load
    from trainer.update.packing import lay_out

    policy, adapter = make_adapter(kit)
    rollout = load(kit.recipe).rollout
    ids_P, completions = group(rollout.max_prompt_tokens, rollout.max_completion_tokens, 0)
    sequences = [Sequence(prompt=ids_P.tolist(), completion=ids_C.tolist()) for ids_C in completions]

    async def ask(client: Any) -> tuple[list[float], Any]:
        await client.fork(BRANCH, "base")
        times: list[float] = []
        for revision in range(1, ROUNDS + 1):
            began = time.monotonic()
            await client.publish(BRANCH, revision, adapter, parent=revision - 1)
            times.append(time.monotonic() - began)
        return times, await client.scores(["base", BRANCH], LogprobsRequest(sequences=sequences))

    times, by_adapter = asyncio.run(_with_client(ask))
    megabytes = sum(file.stat().st_size for file in adapter.iterdir()) / 1e6
    yield row(f"publish of an adapter of {megabytes:,.0f} MB", "s", statistics.median(times[1:]))
    # The trainer's way through the same tokens: one pack, the prompt once. What the engine said it does not look at.
    nothing_C = np.zeros(len(completions[0]), np.float32)
    pack = lay_out(
        [Rollout(Prompt("kit", "text", (), ""), ids_P, tuple(Completion(ids_C, nothing_C) for ids_C in completions))]
    )
    for name, of_sequences in zip((None, BRANCH), by_adapter, strict=True):
        with torch.no_grad():
            trainer_N = policy.logprobs(name, pack).chosen_NK[:, 0].float().cpu().numpy()
        apart_N = np.abs(trainer_N - np.concatenate([scored.logprobs_C for scored in of_sequences]))
        label = f"scores of {name or 'the base'} beside the trainer's"
        yield row(f"{label}, mean", "nat", float(apart_N.mean()))
        yield row(f"{label}, most", "nat", float(apart_N.max()))
    del policy
    if kit.device == "cuda":
        torch.cuda.empty_cache()  # for the run's worker, which is another process


def make_adapter(kit: Kit) -> tuple[Any, Path]:
    """The trainer's copy of the base with a random adapter, and the adapter's files."""
    import torch

    from trainer.recipe.file import load
    from trainer.update.policy import load_policy

    recipe, folder = load(kit.recipe), kit.folder / "adapter"
    policy = load_policy(kit.base, dtype=dtype_here(recipe.base.dtype), device=kit.device)
    policy.adapters.add(BRANCH, rank=recipe.lora.rank, alpha=recipe.lora.rank, seed=0)
    with torch.no_grad():
        for key, parameter in policy.adapters.parameters(BRANCH).items():
            if "lora_B" in key:  # not 0: the adapter is to be seen
                parameter.normal_(std=0.02)
    folder.mkdir()
    policy.adapters.save(BRANCH, folder)
    return policy, folder


def group(prompt: int, completion: int, number: int) -> tuple[Any, list[Any]]:
    """Random letters of the miniature's tokenizer, which has 256 of them: no ids of pictures."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, prompt), [rng.integers(0, 256, completion) for _ in range(8)]


async def _with_client(work: Callable[[Any], Any]) -> Any:
    from clients.client import AsyncClient, from_environment

    async with AsyncClient(**from_environment(os.environ)) as client:
        return await work(client)


def scoring(kit: Kit) -> Iterator[Row]:
    from service.schemas import LogprobsRequest, Sequence
    from trainer.recipe.file import load

    rollout = load(kit.recipe).rollout
    prompt, completion = rollout.max_prompt_tokens, rollout.max_completion_tokens

    async def ask(client: Any) -> list[float]:
        times: list[float] = []
        for number in range(1, ROUNDS + 1):
            ids_P, completions = group(prompt, completion, number)
            sequences = [Sequence(prompt=ids_P.tolist(), completion=ids_C.tolist()) for ids_C in completions]
            began = time.monotonic()
            await client.scores([BRANCH], LogprobsRequest(sequences=sequences))
            times.append(time.monotonic() - began)
        return times

    seconds = statistics.median(asyncio.run(_with_client(ask))[1:])
    yield row(f"scores of 8 x {completion} tokens after a prompt of {prompt}", "s", seconds)
    yield row("scoring, prompt once", "tokens/s", (prompt + 8 * completion) / seconds)


# ---- run ----


def whole_run(kit: Kit) -> Iterator[Row]:
    from trainer.recipe.file import load, run_id

    id, began = run_id(load(kit.recipe)), time.monotonic()
    with (kit.folder / "run.log").open("w") as log:
        coordinator, worker = (
            subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log)
            for words in (
                ("clients.cli", "coordinate", str(kit.recipe), f"--tracking={kit.runs}"),
                ("trainer.worker", "--branch=all", f"--run={id}", f"--device={kit.device}"),
            )
        )
        try:
            for process in (worker, coordinator):
                status = process.wait(max(1.0, kit.deadline - time.monotonic()))
                assert status == 0, f"a process ended with {status}: {kit.folder / 'run.log'}"
        finally:
            for process in (worker, coordinator):
                process.terminate()
                process.wait()
    took = time.monotonic() - began
    steps = steps_of(kit.runs / id / "events.jsonl")
    yield row(f"run of {len(steps)} steps, from the worker's start", "s", took)
    for kind in ("rlvr", "opd"):
        for part in ("gather", "learn", "publish"):
            seconds = [event["seconds"][part] for event in steps if event["phase"] == kind]
            yield row(f"{kind} step, {part}", "s", statistics.median(seconds))


# ---- update ----


def update(kit: Kit) -> Iterator[Row]:
    """In a process of its own, with the card for itself."""
    kit.processes.close()
    file = kit.folder / "gpu_step.json"
    seconds = 1000 if kit.is_tiny else kit.deadline - time.monotonic()
    words = ["-m", "bench.gpu_step", f"--seconds={seconds:.0f}", f"--json={file}", *["--tiny"] * kit.is_tiny]
    with (kit.folder / "gpu_step.log").open("w") as log:
        status = subprocess.run([sys.executable, *words], stdout=log, stderr=log, check=False).returncode
    yield from json.loads(file.read_text())
    assert status == 0, f"a section failed: {kit.folder / 'gpu_step.log'}"


PARTS: dict[str, tuple[Callable[[Kit], Iterator[Row]], float]] = {
    "engine": (engine, 240),
    "scores": (scores, 60),
    "scoring": (scoring, 15),
    "run": (whole_run, 150),
    "update": (update, 90),
}
"""Each with the seconds that it may take on an H200, generously: below, it is not begun."""


def run(arguments: argparse.Namespace) -> int:
    import torch

    folder: Path = arguments.out
    if folder.exists() and any(folder.iterdir()) and not (folder / "kit.json").exists():
        raise UserError(f"--out {folder}: holds what no kit wrote; name a new folder")
    if not (arguments.tiny or torch.cuda.is_available()):
        print("gpu: no CUDA device here, nothing is measured; does it run at all? coevo bench gpu --tiny")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # On a CPU it is tried whether all runs, however slowly.
    kit = Kit(folder, arguments.tiny, math.inf if arguments.tiny else time.monotonic() + arguments.seconds)
    with kit.processes:
        for name, (part, estimate) in PARTS.items():
            left = kit.deadline - time.monotonic()
            if left < estimate:
                kit.troubles.append(f"{name}: skipped, it may take {estimate:.0f} s and {left:.0f} s are left")
            else:
                try:
                    for measured in part(kit):
                        kit.rows.append(measured)
                        print(f"{measured['what']}: {measured['ours']:.4g} {measured['unit']}", flush=True)
                except Exception as error:  # whatever a new card or library breaks: the other parts are wanted
                    traceback.print_exc()
                    kit.troubles.append(f"{name}: failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            rows, text = json.dumps(kit.rows, indent=2), page(kit.rows, kit.troubles, is_tiny=kit.is_tiny)
            for file in filter(None, (folder / "kit.json", arguments.json)):
                file.write_text(rows + "\n")
            (folder / "kit.md").write_text(text)
    print(*kit.troubles, f"gpu: {folder / 'kit.md'}, {folder / 'kit.json'}", sep="\n")
    return 1 if any(": failed: " in trouble for trouble in kit.troubles) else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/gpu"),
        metavar="DIR",
        help="a new folder, or an earlier kit's, which is replaced [out/gpu]",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--seconds", type=positive, default=600, metavar="N", help="end by then, but for --tiny [600]")
    parser.add_argument("--tiny", action="store_true", help="the miniature's shape, on a CPU: does it all run?")
