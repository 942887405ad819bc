"""How time and memory of an update grow: with the group, with the prompt, and with the adapters on one base copy.

    coevo bench growth [--json FILE] [--picture [FILE]] [--threads 1]

Everything runs on the miniature's base in float32, on a CPU: a prompt of random bytes, G completions of 64 tokens, one
update of an adapter of rank 64 (`trainer.update.update`: forward, backward, AdamW). Each point is a process of its
own, so that no memory is inherited; figures are medians of the updates after the first, and memory is the most that was
resident during updates. The peer of a point is the smallest of its kind.

Adapters are another matter: each that is added may cost its masters and its two moments, and nothing else. So beside
what is resident stands what these tensors hold to the byte, and the time to update one of them must not depend on how
many there are.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapters.base import locate
from bench.command import positive
from trainer.parts import Completion, LossTerm, Prompt, Rollout

if TYPE_CHECKING:
    from trainer.update.optim import Optimiser
    from trainer.update.policy import Policy

PICTURE = Path(__file__).parents[1] / "docs" / "growth.png"
COMPLETION, RANK, UPDATES = 64, 64, 5


@dataclass(frozen=True, slots=True)
class Point:
    """What is updated."""

    kind: str
    """What grows: `group`, `prompt` or `adapters`."""
    group: int = 8
    prompt: int = 256
    adapters: int = 1

    @property
    def size(self) -> int:
        return {"group": self.group, "prompt": self.prompt, "adapters": self.adapters}[self.kind]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured there."""

    seconds: float
    """The time of one adapter's update."""
    tokens: int
    """Those that went through the model in it: the prompt counts once."""
    peak: int
    """Bytes that were resident at most while updating."""
    resident: int
    """Bytes afterwards, with every adapter updated once and what was freed given back."""
    tensors: int
    """Bytes of all adapters' masters and moments."""


POINTS = (
    *(Point("group", group=size) for size in (1, 2, 4, 8, 16, 32)),
    *(Point("prompt", prompt=size) for size in (64, 128, 256, 512, 1024, 2048, 4096)),
    *(Point("adapters", adapters=size) for size in range(1, 9)),
)
LETTERS = {"group": "G", "prompt": "P", "adapters": "adapters"}

Growth = Mapping[Point, Figures]


# ---- one point, in its own process ----


def measure(point: Point, threads: int, updates: int = UPDATES) -> Figures:
    import torch

    from trainer.recipe import LossConfig
    from trainer.update.optim import Optimiser
    from trainer.update.policy import load_policy
    from trainer.update.update import update

    torch.set_num_threads(threads)
    policy = load_policy(locate("miniature"), dtype="float32")
    optimisers: dict[str, Optimiser] = {}
    for number in range(point.adapters):
        name = f"a{number}"
        policy.adapters.add(name, rank=RANK, alpha=RANK, seed=0)
        optimisers[name] = Optimiser(policy.adapters.parameters(name), lr=1e-4)
    term = make_term(point)

    def step(name: str) -> float:
        began = time.perf_counter()
        done = update(policy, name, optimisers[name], [term], loss=LossConfig(), budget=2**20)
        assert done.skipped is None
        return time.perf_counter() - began

    for name in optimisers:
        step(name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times = [step("a0") for _ in range(updates)]
    peak = _resident("VmHWM")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    (rollout,) = term.rollouts
    tokens = point.prompt + len(rollout.completions) * (COMPLETION - 1)
    return Figures(statistics.median(times), tokens, peak, _resident("VmRSS"), tensor_bytes(policy, optimisers))


def make_term(point: Point) -> LossTerm:
    """One rollout of text; every other completion is good."""
    rng = np.random.default_rng(0)
    engine_C = np.full(COMPLETION, -5, np.float32)
    completions = tuple(
        Completion(
            rng.integers(0, 256, COMPLETION), engine_C, advantages_C=np.full(COMPLETION, (-1) ** number, np.float32)
        )
        for number in range(point.group)
    )
    prompt = Prompt("bench", "text", (), "")
    return LossTerm("native", (Rollout(prompt, rng.integers(0, 256, point.prompt), completions),))


def tensor_bytes(policy: "Policy", optimisers: Mapping[str, "Optimiser"]) -> int:
    """Bytes of the masters and of what the optimisers keep for them."""
    masters = [master for name in optimisers for master in policy.adapters.parameters(name).values()]
    states = [state for optimiser in optimisers.values() for _, state in optimiser.snapshot()]
    moments = [tensor for state in states for tensor in state.values()]
    return sum(tensor.nbytes for tensor in (*masters, *moments))


def _resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def in_a_process(point: Point, threads: int) -> Figures:
    command = [sys.executable, "-m", "bench.growth", f"--threads={threads}", f"--point={json.dumps(asdict(point))}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


# ---- all of them ----


def of_kind(growth: Growth, kind: str) -> list[tuple[Point, Figures]]:
    return [(point, figures) for point, figures in growth.items() if point.kind == kind]


VALUES: dict[str, Callable[[Figures], float]] = {
    "s": lambda figures: figures.seconds,
    "tokens/s": lambda figures: figures.tokens / figures.seconds,
    "MB peak": lambda figures: figures.peak / 1e6,
    "MB resident": lambda figures: figures.resident / 1e6,
}
UNITS = {
    "group": ("s", "tokens/s", "MB peak"),
    "prompt": ("s", "tokens/s", "MB peak"),
    "adapters": ("s", "MB resident"),
}


def json_rows(growth: Growth) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, units in UNITS.items():
        points = of_kind(growth, kind)
        least, smallest = points[0]
        for point, figures in points:
            label, peer = f"growth: update, {LETTERS[kind]} = {point.size}", f"{LETTERS[kind]} = {least.size}"
            rows += [_row(label, unit, VALUES[unit](figures), peer, VALUES[unit](smallest)) for unit in units]
    each, exact = adapter_costs(growth)
    rows.append(_row("growth: memory of one more adapter", "MB", each / 1e6, "its masters and moments", exact / 1e6))
    return rows


def _row(label: str, unit: str, value: float, peer: str, peer_value: float) -> dict[str, Any]:
    return {"what": label, "unit": unit, "ours": value, "peer": peer, "theirs": peer_value, "ratio": value / peer_value}


def adapter_costs(growth: Growth) -> tuple[float, float]:
    """Bytes that each adapter after the first made resident, by least squares, and that its tensors hold."""
    points = of_kind(growth, "adapters")
    counts = [point.adapters for point, _ in points]
    slope = np.polyfit(counts, [figures.resident for _, figures in points], 1)[0]
    return float(slope), points[0][1].tensors / counts[0]


def table(growth: Growth) -> str:
    lines: list[str] = []
    for kind, letter in LETTERS.items():
        lines.append(f"{letter:>8} {'tokens':>8} {'seconds':>9} {'tokens/s':>9} {'peak MB':>9} {'resident MB':>12}"
                     f" {'adapters MB':>12}")  # fmt: skip
        for point, figures in of_kind(growth, kind):
            rate = figures.tokens / figures.seconds
            lines.append(
                f"{point.size:>8} {figures.tokens:>8,} {figures.seconds:>9.3f} {rate:>9,.0f} "
                f"{figures.peak / 1e6:>9,.0f} {figures.resident / 1e6:>12,.1f} {figures.tensors / 1e6:>12,.1f}"
            )
        lines.append("")
    each, exact = adapter_costs(growth)
    lines.append(f"one more adapter: {each / 1e6:.2f} MB resident, its masters and moments {exact / 1e6:.2f} MB")
    return "\n".join(lines)


def draw(growth: Growth, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (groups, prompts, adapters) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    points = of_kind(growth, "group")
    ideal = [points[0][1].seconds * point.group / points[0][0].group for point, _ in points]
    _draw_seconds(groups, points, "completions of a group", ideal, "without a shared prompt")
    points = of_kind(growth, "prompt")
    ideal = [points[0][1].seconds * figures.tokens / points[0][1].tokens for _, figures in points]
    _draw_seconds(prompts, points, "tokens of the prompt", ideal, "in proportion to all tokens")
    points = of_kind(growth, "adapters")
    counts, (_, least) = [point.adapters for point, _ in points], points[0]
    exact = [(figures.tensors - least.tensors) / 1e6 for _, figures in points]
    adapters.plot(counts, exact, "--", color="0.6", label="their masters and moments")
    adapters.plot(counts, [(figures.resident - least.resident) / 1e6 for _, figures in points], "o", label="resident")
    adapters.set(xlabel="adapters on one base copy", ylabel="MB more than with one", xticks=counts)
    for panel in (groups, prompts, adapters):
        panel.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _draw_seconds(panel: Any, points: list[tuple[Point, Figures]], label: str, ideal: list[float], ideal_label: str):
    from matplotlib.ticker import LogLocator

    sizes = [point.size for point, _ in points]
    panel.loglog(sizes, ideal, "--", color="0.6", label=ideal_label)
    panel.loglog(sizes, [figures.seconds for _, figures in points], "o-", label="measured")
    panel.set(xlabel=label, ylabel="seconds of an update", xticks=sizes, xticklabels=sizes)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()


def run(arguments: argparse.Namespace) -> int:
    if arguments.point:
        print(json.dumps(asdict(measure(Point(**json.loads(arguments.point)), arguments.threads))))
        return 0
    growth: dict[Point, Figures] = {}
    for number, point in enumerate(POINTS, 1):
        print(f"{number} of {len(POINTS)}: {LETTERS[point.kind]} = {point.size}", file=sys.stderr)
        growth[point] = in_a_process(point, arguments.threads)
    print(f"the miniature, float32, {arguments.threads} thread(s); G 8, P 256, C {COMPLETION} where not said\n")
    print(table(growth))
    if arguments.json:
        arguments.json.write_text(json.dumps(json_rows(growth), indent=2) + "\n")
    if arguments.picture:
        draw(growth, arguments.picture)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--picture", type=Path, nargs="?", const=PICTURE, metavar="FILE",
                        help="draw the growth (default: docs/growth.png)")  # fmt: skip
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of the update (default: 1)")
    parser.add_argument("--point", help=argparse.SUPPRESS)


def main() -> int:
    parser = argparse.ArgumentParser(description="how time and memory of an update grow")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
