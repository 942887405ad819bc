"""Three adapters of rank 64 folded into a base of the shape of Qwen3-VL-4B, beside `cp` of that base.

    coevo bench merge [--json FILE] [--layers 36] [--rank 64] [--folder DIR] [--method mean]

The base is random, in bfloat16, with the language model's shapes in files of at most 4 GB, and no vision tower: its
0.8 GB would only be copied. It and the merged one take 16 GB of the disk, the adapters 1.6 GB; all of it is gone at the
end. Each side runs in a process of its own and ends with its files on the disk (`sync`); `cp` reads a base that was
read before. Memory is the process's peak, with the pages of the adapters'
files that it maps.

What the merge's seconds hold beside the fold: the imports, the base's digest, and the adapters' checks.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapters.manifest import CONFIG, WEIGHTS
from adapters.validate import TARGETS, BaseShape, base_shape
from bench.command import positive

GB = 10**9
PEAK_GB = 7.0
SHARD_BYTES = 4 * GB
TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="coevo-bench-", dir=arguments.folder) as name:
        root = Path(name)
        num_bytes = make_base(root / "base", arguments.layers)
        shape = base_shape(root / "base")
        adapters = [make_adapter(root / f"branch{seed}", shape, arguments.rank, seed) for seed in range(3)]
        _sync()
        print(
            f"base: {num_bytes / GB:.2f} GB, {arguments.layers} layers; 3 adapters of rank {arguments.rank}", flush=True
        )
        copied = _copied(root / "base", root / "copy")
        shutil.rmtree(root / "copy")
        command = [sys.executable, "-m", "bench.merge", *map(str, adapters), f"--base={root / 'base'}"]
        merged, memory = _measured([*command, f"--out={root / 'out'}", f"--method={arguments.method}"])
    rows = [
        {"what": "merge", "unit": "s", "ours": merged, "peer": "cp", "theirs": copied, "ratio": merged / copied},
        {"what": "merge_memory", "unit": "GB", "ours": memory, "peer": "limit", "theirs": PEAK_GB,
         "ratio": memory / PEAK_GB},
    ]  # fmt: skip
    for row in rows:
        values = f"{row['ours']:.2f} {row['unit']}, {row['peer']} {row['theirs']:.2f}"
        print(f"{row['what']}: {values}, ratio {row['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def make_base(folder: Path, num_layers: int) -> int:
    """Its bytes."""
    folder.mkdir()
    config = {"model_type": "qwen3_vl", "text_config": TEXT | {"num_hidden_layers": num_layers}, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for key, dims in _shapes(base_shape(folder)):
        if sum(map(math.prod, shards[-1].values())) * 2 + math.prod(dims) * 2 > SHARD_BYTES:
            shards.append({})
        shards[-1][key] = dims
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        generator = torch.Generator().manual_seed(number)
        some = torch.randn(2**24, generator=generator).mul_(0.02).bfloat16()  # random enough, and quick
        tensors = {
            key: some.repeat(math.prod(dims) // 2**24 + 1)[: math.prod(dims)].view(dims) for key, dims in shard.items()
        }
        save_file(tensors, folder / name, {"format": "pt"})
        where |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return sum(path.stat().st_size for path in folder.iterdir())


def _shapes(shape: BaseShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.language_model.embed_tokens.weight", (TEXT["vocab_size"], TEXT["hidden_size"])
    for layer in range(shape.num_layers):
        for name, (num_inputs, num_outputs) in shape.projections.items():
            yield f"{shape.architecture.layers}{layer}.{name}.weight", (num_outputs, num_inputs)


def make_adapter(folder: Path, shape: BaseShape, rank: int, seed: int) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = shape.shapes(rank).items()
    save_file({key: torch.randn(*dims, generator=generator) * 1e-3 for key, dims in shapes}, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "target_modules": sorted(TARGETS)}
    (folder / CONFIG).write_text(json.dumps(settings))
    return folder


def _copied(source: Path, target: Path) -> float:
    """Seconds of the second of two copies: the first brings the base into memory where it fits."""
    for _ in range(2):
        shutil.rmtree(target, ignore_errors=True)
        _sync()
        start = time.perf_counter()
        subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
        _sync()
        seconds = time.perf_counter() - start
    return seconds


def _measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and the process's peak in GB."""
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    _sync()
    seconds = time.perf_counter() - start
    print(done.stdout.rstrip(), flush=True)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seconds, report["peak_gb"]


def _sync() -> None:
    subprocess.run(["sync"], check=True)


def _merge() -> None:
    """The command itself, and then what it took."""
    from trainer.commands import merge as merge_command

    parser = argparse.ArgumentParser()
    merge_command.add_arguments(parser)
    merge_command.run(parser.parse_args())
    status = Path("/proc/self/status").read_text()  # getrusage's peak begins with that of the process that started us
    print(json.dumps({"peak_gb": int(status.split("VmHWM:")[1].split()[0]) * 1024 / GB}))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--layers", type=positive, default=36, metavar="N", help="of the base; 36 are a 4B's")
    parser.add_argument("--rank", type=positive, default=64, metavar="N")
    parser.add_argument("--method", default="mean", choices=("mean", "svd", "ties"))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where there is room; the system's by default")


if __name__ == "__main__":
    _merge()
