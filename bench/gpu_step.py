"""One update of a Qwen3-VL-4B on one GPU: packed with flex attention and compiled layers, beside the same layers not
compiled, a dense mask and plain padded rows.

    coevo bench gpu_step [--json FILE] [--seconds 280]        or: python -m bench.gpu_step

The model has the shape of Qwen3-VL-4B and random weights, bfloat16, its layers computed again in the backward pass,
LoRA of rank 64. A group is 8 completions of one text prompt; a step is the update's loss forward and backward. Then:
the memory of three adapters beside the arithmetic of `coevo doctor`, log-probabilities in chunks beside full logits,
an adapter's way to the store, what packs of new lengths cost, how far the ways are apart in float32. Without a CUDA
device it says so and ends.

It runs unattended and offline. A section that would not end within `--seconds` is skipped, one that fails says so in
a line, and the rows so far are on disk after each. Figures are medians of the calls after the first; "first" is the
first call, with all that is compiled in it. MFU counts the products that the mathematics needs: 2 a weight and token
forward, 2 backward through frozen weights, 6 for adapters, 12 a pair of tokens, head and head dimension. Recomputation
and pairs that a mask hides are not among them. It is of 989 TFLOP/s, the dense bfloat16 peak that their maker states
for H100 and H200; on another card it is left out.

It needs torch, transformers, peft, numpy, safetensors, pydantic (trainer.recipe, adapters.manifest) and, because the
policy can see, pillow and PyAV (trainer.update.vision imports service.media). Nothing is tokenised and no picture
processed: the processor of the miniature stands in for the 4B's.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from adapters.manifest import ADAPTER_FILES, WEIGHTS, FileEntry, verify
from adapters.tensor_files import served_copy
from bench import gpu_lab
from bench.gpu_lab import ADAPTERS, DENSE, OURS, ROWS, WAYS, Case, Lab, Timing, seconds, timed
from trainer.doctor.memory import lora_parameters, worker_parts
from trainer.doctor.price import model_flops
from trainer.parts import LossTerm
from trainer.update import attention, logprobs
from trainer.update.optim import Optimiser
from trainer.update.packing import Pack, lay_out
from trainer.update.update import update


@dataclass(frozen=True, slots=True)
class Row:
    """`theirs` None: there is nothing to compare with."""

    label: str
    unit: str
    value: float
    peer: str = "none"
    peer_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        ratio = self.value / self.peer_value if self.peer_value else None
        return {
            "what": f"gpu_step: {self.label}",
            "unit": self.unit,
            "ours": self.value,
            "peer": self.peer,
            "theirs": self.peer_value,
            "ratio": ratio,
        }

    def __str__(self) -> str:
        beside = "" if self.peer_value is None else f", {self.peer} {_shown(self.peer_value)}"
        return f"{self.label}: {_shown(self.value)} {self.unit}{beside}"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# ---- a step, in three ways ----


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    timing: Timing
    rates: tuple[tuple[float, str], ...]
    logprobs_N: Tensor


Steps = dict[tuple[Case, str], Step]
"""What was measured so far, by case and way."""


def measure_step(lab: Lab, steps: Steps, case: Case, way: str) -> Iterable[Row]:
    """Prints it. Rows come when the other ways are known."""
    rollout = gpu_lab.make_rollout(lab, case)
    tokens, pairs = WAYS[way].load(rollout)
    if way == DENSE and tokens > lab.sizes.dense_limit:
        print(f"{_label(case)} {way}: refused, {tokens:,} packed tokens are more than {lab.sizes.dense_limit:,}")
        return ()
    outputs: list[Tensor] = []
    timing = timed(lab, lambda: outputs.append(gpu_lab.forward_backward(lab, WAYS[way], rollout)[0]))
    predicted = len(outputs[0])
    flops = model_flops(lab.shape, lab.sizes.rank, tokens=tokens, pairs=pairs, predicted=predicted)
    rates = [(predicted / timing.seconds, "completion tokens/s"), (tokens / timing.seconds, "tokens/s")]
    if lab.peak_flops:
        rates.append((100 * flops / timing.seconds / lab.peak_flops, "% MFU"))
    if lab.on_gpu:
        rates.append((timing.peak / 1e9, "GB peak"))
    steps[case, way] = Step(timing, tuple(rates), outputs[-1])
    words = "".join(f", {_shown(value)} {unit}" for value, unit in rates)
    print(f"{_label(case)} {way}: {timing.seconds:.3f} s (first {timing.first:.1f} s){words}", flush=True)
    return ()


def _label(case: Case) -> str:
    return f"{case[0]}/{case[1]}"


def step_rows(lab: Lab, steps: Steps) -> Iterator[Row]:
    """Ours beside each other way."""
    for case in lab.sizes.cases:
        peers = [way for way in WAYS if way != OURS and (case, way) in steps]
        if (case, OURS) not in steps:
            continue
        step = steps[case, OURS]
        yield Row(f"{_label(case)} first step", "s", step.timing.first, "later ones", step.timing.seconds)
        for peer in peers:
            peer_step = steps[case, peer]
            yield Row(f"{_label(case)} step", "s", step.timing.seconds, peer, peer_step.timing.seconds)
            for (rate, unit), (peer_rate, _) in zip(step.rates, peer_step.rates, strict=True):
                yield Row(f"{_label(case)} step", unit, rate, peer, peer_rate)
            apart = (step.logprobs_N - peer_step.logprobs_N).abs().mean()
            yield Row(f"{_label(case)} log-probs, mean distance from {peer}", "nat", float(apart))


def new_lengths(lab: Lab, steps: Steps) -> Iterator[Row]:
    """What a pack costs whose number of tokens was not seen before."""
    from torch._dynamo.utils import counters

    for case in lab.sizes.lengths:
        before = counters["stats"]["unique_graphs"]
        measure_step(lab, steps, case, OURS)
        timing = steps[case, OURS].timing
        print(f"{_label(case)}: {counters['stats']['unique_graphs'] - before} graphs compiled")
        yield Row(f"{_label(case)}, a new length, first step", "s", timing.first, "later ones", timing.seconds)
        spans = lay_out([gpu_lab.make_rollout(lab, case)]).spans
        mask = timed(lab, lambda spans=spans: attention.layout(spans, lab.device))
        yield Row(f"{_label(case)}, its layout", "s", mask.seconds, "its step", timing.seconds)


# ---- beside the step ----


def adapter_memory(lab: Lab, steps: Steps) -> Iterator[Row]:
    """Three adapters on one base copy, each updated once, the last of them measured."""
    case, masters = lab.sizes.cases[0], _bytes(lab.policy.adapters.parameters(ADAPTERS[0]))
    pack = lay_out([gpu_lab.make_rollout(lab, case)])
    bare = lab.allocated() - masters
    base = _bytes(dict(lab.model.named_parameters())) - masters
    for name in ADAPTERS[1:]:
        gpu_lab.add_adapter(lab, name)
    try:
        optimisers = {name: Optimiser(lab.policy.adapters.parameters(name), lr=1e-5) for name in ADAPTERS}
        took = 0.0
        for name, optimiser in optimisers.items():
            lab.peak()
            took = seconds(lab, partial(_update, lab, name, optimiser, pack))
        peak, held = lab.peak(), lab.allocated()
    finally:
        for name in ADAPTERS[1:]:
            lab.policy.adapters.remove(name)
    step = steps.get((case, OURS))
    yield Row("update of one adapter, with AdamW", "s", took, "forward and backward", step and step.timing.seconds)
    parts = worker_parts(lab.shape, element=lab.output.element_size(), rank=lab.sizes.rank,
                         branches=len(ADAPTERS), tokens=len(pack.ids_T), on_gpu=lab.on_gpu)  # fmt: skip
    measured = (base, held - bare + masters, peak - held - masters + lab.context())  # gradients are as large as masters
    for part, num_bytes in zip(parts, measured, strict=True):
        yield Row(f"{len(ADAPTERS)} adapters, {part.name}", "GB", num_bytes / 1e9, "arithmetic", part.bytes / 1e9)
    whole = sum(part.bytes for part in parts)
    yield Row(f"{len(ADAPTERS)} adapters, all of it", "GB", sum(measured) / 1e9, "arithmetic", whole / 1e9)


def _bytes(parameters: dict[str, Any]) -> int:
    return sum(parameter.nbytes for parameter in parameters.values())


def _update(lab: Lab, name: str, optimiser: Optimiser, pack: Pack) -> None:
    budget = len(pack.ids_T)
    done = update(lab.policy, name, optimiser, [LossTerm("native", pack.rollouts)], loss=gpu_lab.LOSS, budget=budget)
    assert done.skipped is None
    assert done.budget == budget, "there was no room for one pack"


def chunked_logprobs(lab: Lab) -> Iterator[Row]:
    """Forward and backward; memory beyond what was there before."""
    count, output_VD = lab.sizes.logprob_rows, lab.output
    hidden_ND = torch.randn(count, output_VD.shape[1], device=lab.device, dtype=output_VD.dtype).requires_grad_()
    ids_N1 = torch.randint(len(output_VD), (count, 1), device=lab.device)
    before = lab.allocated()

    def all_logits() -> Tensor:
        return (hidden_ND @ output_VD.T).float().log_softmax(-1).gather(-1, ids_N1)

    def measured(logprobs_of: Callable[[], Tensor]) -> Timing:
        def work() -> None:
            logprobs_of().sum().backward()
            hidden_ND.grad = None

        return timed(lab, work)

    try:
        full = measured(all_logits)
    except torch.OutOfMemoryError:
        full = None
    for chunk in lab.sizes.chunks:
        with patch.dict(logprobs._CHUNK, dict.fromkeys(logprobs._CHUNK, chunk)):
            timing = measured(lambda: logprobs.chosen_logprobs(hidden_ND, output_VD, ids_N1).chosen_NK)
        label = f"{count:,} log-probs, {chunk} rows of logits at once"
        peak, full_peak = timing.peak - before, full and full.peak - before
        yield Row(label, "s", timing.seconds, "all logits", full and full.seconds)
        yield Row(label, "GB", peak / 1e9, "all logits", full_peak and full_peak / 1e9)


def adapter_files(lab: Lab) -> Iterator[Row]:
    """An adapter's way to the store and to the engine, beside the least that can be done with so many bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder, served, copy = (Path(name) / part for part in ("saved", "served", "other"))
        folder.mkdir()
        saved = seconds(lab, lambda: lab.policy.adapters.save(ADAPTERS[0], folder))
        data = (folder / WEIGHTS).read_bytes()
        written = seconds(lab, lambda: copy.write_bytes(data))
        entries = {file: _entry((folder / file).read_bytes()) for file in ADAPTER_FILES}
        hashed = seconds(lab, lambda: verify(folder, entries))
        bare = seconds(lab, lambda: hashlib.sha256(data))
        copied = seconds(lab, lambda: served_copy(folder, served, "bfloat16"))
        plain = seconds(lab, lambda: shutil.copyfile(folder / WEIGHTS, copy))
    size = f"{lora_parameters(lab.shape, lab.sizes.rank) / 1e6:.3g} M parameters"
    yield Row(f"save an adapter of {size}", "s", saved, "write of its bytes", written)
    yield Row(f"hash an adapter of {size}", "s", hashed, "SHA-256 of its bytes", bare)
    yield Row(f"bfloat16 copy of {size}", "s", copied, "plain copy", plain)


def _entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def exactness(lab: Lab) -> Iterator[Row]:
    """Last, because the model is float32 afterwards."""
    lab.model.float()
    rollout = gpu_lab.make_rollout(lab, lab.sizes.lengths[0])
    (logprobs_N, gradients), *peers = (gpu_lab.forward_backward(lab, WAYS[way], rollout) for way in (OURS, ROWS, DENSE))
    for peer, (peer_logprobs_N, peer_gradients) in zip((ROWS, DENSE), peers, strict=True):
        apart = torch.nn.utils.get_total_norm([gradients[key] - peer_gradients[key] for key in peer_gradients])
        yield Row(f"float32 log-probs, most from {peer}", "nat", float((logprobs_N - peer_logprobs_N).abs().max()))
        size = torch.nn.utils.get_total_norm(peer_gradients.values())
        yield Row(f"float32 gradients, distance from {peer}", "of its norm", float(apart / size))


# ---- the run ----


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    estimate: float
    """Seconds on an H200, generously."""
    measure: Callable[[], Iterable[Row]]


def sections(lab: Lab, steps: Steps) -> Iterator[Section]:
    """In the order of their worth."""
    for case in lab.sizes.cases:
        for way in WAYS:
            estimate = 60.0 if WAYS[way].compiled else 15.0
            yield Section(f"{_label(case)} {way}", estimate, partial(measure_step, lab, steps, case, way))
    yield Section("memory of adapters", 25, partial(adapter_memory, lab, steps))
    yield Section("log-probs in chunks", 15, partial(chunked_logprobs, lab))
    yield Section("files of an adapter", 15, partial(adapter_files, lab))
    yield Section("new lengths", 45, partial(new_lengths, lab, steps))
    yield Section("exactness", 40, partial(exactness, lab))


def run_sections(lab: Lab, deadline: float, json_file: Path | None) -> bool:
    """Whether none failed."""
    steps: Steps = {}
    rows: list[Row] = []
    well = True
    for section in sections(lab, steps):
        if time.monotonic() + section.estimate > deadline:
            print(f"{section.name}: skipped, it may take {section.estimate:.0f} s")
            continue
        try:
            for row in section.measure():
                if row.unit != "GB" or lab.on_gpu:
                    print(row, flush=True)
                    rows.append(row)
        except Exception as error:  # whatever a new card or library breaks: the other sections are wanted
            well = False
            traceback.print_exc()
            print(
                f"{section.name}: failed: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}", flush=True
            )
        lab.clear()
        if json_file:
            json_rows = [row.as_json() for row in [*step_rows(lab, steps), *rows]]
            json_file.write_text(json.dumps(json_rows, indent=2) + "\n")
    for row in step_rows(lab, steps):
        print(row)
    return well


def run(arguments: argparse.Namespace) -> int:
    if not (arguments.tiny or torch.cuda.is_available()):
        print("gpu_step: no CUDA device here, nothing is measured")
        return 0
    deadline = time.monotonic() + arguments.seconds
    sizes, device = (gpu_lab.TINY, "cpu") if arguments.tiny else (gpu_lab.LARGE, "cuda")
    return 0 if run_sections(gpu_lab.make_lab(sizes, torch.device(device)), deadline, arguments.json) else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--seconds", type=float, default=280, metavar="N", help="end by then (default: 280)")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)


def main() -> int:
    parser = argparse.ArgumentParser(description="one update of a Qwen3-VL-4B on one GPU")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
