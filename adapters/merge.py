"""Several adapters become one model: W + scale * sum_k w_k scale_k B_k A_k, in float32, cast once to the base's dtype.

A merge is planned before it is made: adapters are checked, and every projection is found in the base with its shape
and dtype. Then each file of the base is copied to a new one, and the rows of the projections are changed on the way.
Shapes and dtypes stay, so the header is the base's own; memory holds some rows and one projection's factors, whatever
the size of the base.

    mean    the weighted mean of the deltas, exact: its adapter is the branches' factors stacked, rank = sum
    svd     the nearest delta of a lower rank to that mean: an adapter as small as one branch's
    ties    Yadav et al. 2023: of each delta the largest entries, of those the ones of the majority's sign. No adapter

PEFT's `combination_type="linear"` is none of these: it sums the factors, and its product holds every A with every B.

Left out: which scale and weights are best (that takes scores), and serving the result. Axes are those of `merge_math`.
"""

import itertools
import json
import math
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from adapters.errors import UserError
from adapters.manifest import CONFIG, WEIGHTS
from adapters.merge_inputs import (
    DTYPES,
    MergeBase,
    MergeInput,
    Shard,
    TensorEntry,
    layer_of,
    projections,
)
from adapters.merge_math import inner_products, ties, trim_threshold, truncated
from adapters.merge_record import RECORD, BranchRecord, Method, Record, write_adapter_card, write_card
from adapters.names import shown
from adapters.store import disk_full_as_user_error
from adapters.store_root import sync
from adapters.tensor_files import safetensors_header
from adapters.validate import PREFIX, BaseShape

_COPIED = {".json", ".jinja", ".txt", ".model"}
"""Files of the base that come along by their ending: settings, templates, tokenizers. No weights, and no card: the
merge has its own."""
_BLOCK = 2**20
"""Entries folded at once: 4 MB in float32, which stay in a core's cache. The result is the same for any number."""

Rows = Callable[[slice], Tensor]
"""Some rows of a merged delta [o, I]."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What is merged, and how."""

    branches: tuple[MergeInput, ...]
    shares: tuple[float, ...]
    """The branches' weights; they sum to 1."""
    method: Method = "mean"
    scale: float = 1.0
    rank: int | None = None
    """The rank of `svd`; none otherwise."""
    density: float | None = None
    """The share of each delta's entries that `ties` keeps; none otherwise."""


@dataclass(slots=True)
class FoldStats:
    """What is counted while weights are folded."""

    num_layers: int
    num_changed: int = 0
    num_weights: int = 0
    largest_error: float = 0.0
    squared_error: float = 0.0
    squared_norms: list[float] = field(init=False)
    """The squared norm of the merged delta, by layer."""

    def __post_init__(self) -> None:
        self.squared_norms = [0.0] * self.num_layers

    def count(self, projection: str, weight: Tensor, delta: Tensor, exact: Tensor, folded: Tensor) -> None:
        """Counts some rows of a projection. `exact` is overwritten."""
        error = exact.sub_(folded)
        self.num_changed += int((folded != weight).sum())
        self.num_weights += folded.numel()
        self.squared_error += float(torch.linalg.vector_norm(error)) ** 2
        largest = float(error.abs_().max())
        # `max` would pass over a NaN, which inf - inf gives for a sum that is beyond float32 too.
        self.largest_error = max(self.largest_error, largest if math.isfinite(largest) else math.inf)
        self.squared_norms[layer_of(projection)] += float(torch.linalg.vector_norm(delta)) ** 2


def make_merge_plan(
    branches: Sequence[MergeInput],
    weights: Mapping[str, float],
    *,
    method: Method = "mean",
    scale: float = 1.0,
    rank: int | None = None,
    density: float = 0.2,
) -> MergePlan:
    """Weights are equal where none are given. `rank` is for svd, the largest branch's by default; density for ties."""
    names = [branch.name for branch in branches]
    _check_numbers(names, weights, scale, density)
    given = [weights.get(name, 1.0) for name in names]
    total = math.fsum(given)  # exact, so that the order of the branches does not change their shares
    if rank is not None and method != "svd":
        raise UserError(f"--rank {rank}: {method} has its own; leave it out, or take svd")
    if rank is None:
        rank = max(branch.adapter.rank for branch in branches)
    # Above the sum there is nothing left to find: the mean itself has no higher rank.
    rank = min(rank, sum(branch.adapter.rank for branch in branches))
    if rank < 1:
        raise UserError(f"--rank {rank}: no rank; take a whole number from 1")
    return MergePlan(
        branches=tuple(branches),
        shares=tuple(weight / total for weight in given),
        method=method,
        scale=scale,
        rank=rank if method == "svd" else None,
        density=density if method == "ties" else None,
    )


def fold(
    base: MergeBase, plan: MergePlan, target: Path, tell: Callable[[int, int], None] = lambda done, total: None
) -> Record:
    """The merged checkpoint in a new folder, which appears whole or not at all. Its record is in it. `tell` hears how
    many tensors of all are done."""
    stats = FoldStats(base.shape.num_layers)
    done, total = 0, sum(len(shard.entries) for shard in base.shards)
    with appearing(target) as draft:
        for path in sorted(base.folder.iterdir()):
            if path.is_file() and (path.suffix in _COPIED or path.name == "LICENSE"):
                shutil.copyfile(path, draft / path.name)
        for shard in base.shards:
            for _ in _fold_shard(shard, base.shape, plan, draft / shard.path.name, stats):
                done += 1
                tell(done, total)
        # The draft goes with this error: one infinite weight makes a model answer nothing but NaN.
        if not math.isfinite(stats.largest_error):
            raise UserError(f"{target}: weights beyond the range of the base's dtype; take a lower --scale")
        record = _record(base, plan, stats)
        (draft / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        write_card(draft, record, {})
    return record


def write_adapter(base: MergeBase, plan: MergePlan, target: Path) -> None:
    """The merged delta as an adapter in a new folder with a card: stacked, or of the rank of `svd`. Its scale is 1."""
    if plan.method == "ties":
        raise UserError(f"{target}: ties makes no adapter, its delta has every rank; take mean or svd")
    rank = plan.rank or sum(branch.adapter.rank for branch in plan.branches)
    # A projection that no branch trains has no keys: whoever goes on from the merge trains the same ones.
    trained = [name for name in sorted(projections(base.shape)) if any(branch.has(name) for branch in plan.branches)]
    keys = {f"{PREFIX}{name}.lora_{half}.weight" for name in trained for half in "AB"}
    shapes = {key: shape for key, shape in base.shape.shapes(rank).items() if key in keys}
    with appearing(target) as draft:
        with (draft / WEIGHTS).open("wb") as file:
            file.write(safetensors_header(shapes, "F32"))
            for projection in trained:
                up_OR, down_RI = merged_factors(plan, projection)
                for key, tensor in (("lora_A", down_RI), ("lora_B", up_OR)):
                    assert tensor.shape == shapes[f"{PREFIX}{projection}.{key}.weight"]
                    file.write(_bytes(tensor))
        settings = {
            "base_model_name_or_path": base.name,
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({name.rpartition(".")[2] for name in trained}),
        }
        (draft / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        records = _branch_records(plan)
        write_adapter_card(draft, base.name, base.digest, records, method=plan.method, scale=plan.scale)


def merged_factors(plan: MergePlan, projection: str) -> tuple[Tensor, Tensor]:
    """B [O, R] and A [R, I] of the merged delta of one projection."""
    pairs = [branch.factors(projection) for branch in plan.branches]
    up_OR = torch.cat([up * (share * plan.scale) for (up, _), share in zip(pairs, plan.shares, strict=True)], dim=1)
    down_RI = torch.cat([down for _, down in pairs])
    return (up_OR, down_RI) if plan.rank is None else truncated(up_OR, down_RI, plan.rank)


def cosines(base: MergeBase, branches: Sequence[MergeInput]) -> dict[str, float | None]:
    """The cosines between branches' deltas, all projections as one vector."""
    product_KK = torch.zeros(len(branches), len(branches), dtype=torch.float64)
    for projection in projections(base.shape):
        product_KK += inner_products([branch.factors(projection) for branch in branches])
    by_pair: dict[str, float | None] = {}
    for j, k in itertools.combinations(range(len(branches)), 2):
        norm = float((product_KK[j, j] * product_KK[k, k]).sqrt())
        by_pair[f"{branches[j].name} {branches[k].name}"] = float(product_KK[j, k]) / norm if norm > 0 else None
    return by_pair


def check_new(target: Path) -> None:
    """A UserError where the folder cannot be made: a command asks this before a base of many GB is read."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists; name a new folder")
    if not target.parent.is_dir():
        raise UserError(f"{target}: {target.parent} is no folder; make it first")


@contextmanager
def appearing(target: Path) -> Generator[Path]:
    """A folder to fill, beside the target, which it becomes at the end of the block; after an error nothing is left."""
    check_new(target)
    # Beside the target, so that both are on one disk: a rename across disks would be a copy, which can break off.
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with disk_full_as_user_error(str(target)):
            draft.mkdir()
            yield draft
            for path in draft.iterdir():  # a full disk may be told only now, when the content is really written
                sync(path)
            draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _fold_shard(
    shard: Shard, shape: BaseShape, plan: MergePlan, target: Path, stats: FoldStats
) -> Iterator[TensorEntry]:
    """The file again, with the projections' rows changed on the way; each tensor when it is written."""
    projection_of = {f"{projection}.weight": projection for projection in projections(shape)}
    with shard.path.open("rb") as reader, target.open("wb") as writer:
        reader.seek(len(shard.header))
        writer.write(shard.header)
        for entry in shard.entries:  # in the order of their bytes, so that reading and writing never seek
            if entry.key in projection_of:
                _fold_tensor(entry, projection_of[entry.key], plan, reader, writer, stats)
            else:
                num_bytes = entry.num_bytes
                while num_bytes > 0:
                    chunk = reader.read(min(num_bytes, 2**24))
                    assert chunk, "the base is shorter than its header says"
                    writer.write(chunk)
                    num_bytes -= len(chunk)
            yield entry


def _fold_tensor(
    entry: TensorEntry, projection: str, plan: MergePlan, reader: BufferedReader, writer: BinaryIO, stats: FoldStats
) -> None:
    delta_rows = merged_rows(plan, projection)
    num_rows, num_inputs = entry.shape
    step = max(1, _BLOCK // num_inputs)
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        weight_oI = torch.empty(rows.stop - start, num_inputs, dtype=DTYPES[entry.dtype])
        count = reader.readinto(_bytes(weight_oI))
        assert count == weight_oI.nbytes, f"{entry.key}: the base is shorter than its header says"
        delta_oI = delta_rows(rows)
        # Summed in float32 and cast once: in bfloat16 a small delta would be rounded before it is added and after.
        # A new tensor: where the base is float32, `float()` is the weight itself, which is counted against below.
        exact_oI = weight_oI.float() + delta_oI
        # A copy also where the dtype is float32 already: `count` overwrites the exact sum.
        folded_oI = exact_oI.to(weight_oI.dtype, copy=True)
        writer.write(_bytes(folded_oI))
        stats.count(projection, weight_oI, delta_oI, exact_oI, folded_oI)


def merged_rows(plan: MergePlan, projection: str) -> Rows:
    """The merged delta of one projection, to be asked for by rows: in full it is ten times its factors."""
    if plan.density is None:
        up_OR, down_RI = merged_factors(plan, projection)
        return lambda rows: up_OR[rows] @ down_RI
    # A threshold is that of the whole delta, so each is made once in full before the rows.
    pairs, density = [branch.factors(projection) for branch in plan.branches], plan.density
    thresholds = [trim_threshold(up_Or @ down_rI, density) for up_Or, down_rI in pairs]
    return lambda rows: ties([up[rows] @ down for up, down in pairs], thresholds, plan.shares).mul_(plan.scale)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's memory, without a copy where it is contiguous. By way of uint8, as NumPy has no bfloat16."""
    return memoryview(cast(Any, tensor.contiguous().view(torch.uint8).numpy())).cast("B")


def _record(base: MergeBase, plan: MergePlan, stats: FoldStats) -> Record:
    norm = math.sqrt(math.fsum(stats.squared_norms))
    layers = base.shape.architecture.layers
    dtypes = {entry.dtype for shard in base.shards for entry in shard.entries if entry.key.startswith(layers)}
    return Record(
        base=base.name,
        base_digest=base.digest,
        branches=_branch_records(plan),
        method=plan.method,
        scale=plan.scale,
        rank=plan.rank,
        density=plan.density,
        dtype=", ".join(sorted(dtypes)),
        changed=stats.num_changed / stats.num_weights,
        lost=math.sqrt(stats.squared_error) / norm if norm > 0 else None,
        largest_difference=stats.largest_error,
        layer_norms=tuple(math.sqrt(square) for square in stats.squared_norms),
        cosines=cosines(base, plan.branches),
    )


def _branch_records(plan: MergePlan) -> tuple[BranchRecord, ...]:
    return tuple(
        BranchRecord(
            name=branch.name,
            source=branch.source,
            digest=branch.digest,
            share=share,
            rank=branch.adapter.rank,
            alpha=branch.adapter.alpha,
            rslora=branch.adapter.is_rank_stabilised,
            dtype=branch.dtype,
        )
        for branch, share in zip(plan.branches, plan.shares, strict=True)
    )


def _check_numbers(names: Sequence[str], weights: Mapping[str, float], scale: float, density: float) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two adapters are called {twice[0]}; name them: one={twice[0]}@3 other={twice[0]}@9")
    if weights and set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))[0]
        reason = "names no adapter of this merge" if odd in weights else "has no weight"
        raise UserError(f"--weights: {shown(odd)} {reason}; give one each: {','.join(f'{n}=1' for n in names)}")
    if weights and not (all(0 <= w < math.inf for w in weights.values()) and sum(weights.values()) > 0):
        raise UserError("--weights: take numbers from 0, not all of them 0")
    if not 0 < scale < math.inf:
        raise UserError(f"--scale {scale}: take a number above 0")
    if not 0 < density <= 1:
        raise UserError(f"--density {density}: take a share above 0 and at most 1")
