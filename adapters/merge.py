"""Several adapters become one model: W + scale * sum_k w_k scale_k B_k A_k, in float32, cast once to the base's dtype.

A merge is planned before it is made: adapters are checked, and every projection is found in the base with its shape
and dtype. Then each file of the base is copied to a new one, and the rows of the projections are changed on the way.
Shapes and dtypes stay, so the header is the base's own; memory holds some rows and one projection's factors, whatever
the size of the base.

    mean    the weighted mean of the deltas, exact: its adapter is the branches' factors stacked, rank = sum
    svd     the nearest delta of a lower rank to that mean: an adapter as small as one branch's
    ties    Yadav et al. 2023: of each delta the largest entries, of those the ones of the majority's sign. No adapter

PEFT's `combination_type="linear"` is none of these: it sums the factors, and its product holds every A with every B.

Left out: which scale and weights are best (that takes scores), and serving the result.

Axes: O outputs, I inputs, r a branch's rank, R the merged rank, K branches.
"""

import itertools
import json
import math
import shutil
import struct
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from adapters.errors import UserError
from adapters.manifest import CONFIG, WEIGHTS
from adapters.merge_inputs import (
    DTYPES,
    LAYERS,
    PREFIX,
    MergeBase,
    MergeInput,
    Shard,
    TensorEntry,
    layer_of,
    projections,
)
from adapters.merge_record import RECORD, BranchRecord, Method, Record, write_card
from adapters.names import shown
from adapters.store import disk_full_as_user_error, sync
from adapters.validate import TARGETS, BaseShape

_COPIED = {".json", ".jinja", ".txt", ".model"}  # settings, templates, tokenizers; no weights, no card
_BLOCK = 2**20  # entries folded at once: they stay in a core's cache

Rows = Callable[[slice], Tensor]
"""Some rows of a merged delta [o, I]."""


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What is merged, and how."""

    branches: tuple[MergeInput, ...]
    shares: tuple[float, ...]
    """Of the branches; they sum to 1."""
    method: Method = "mean"
    scale: float = 1.0
    rank: int | None = None
    """Of `svd`; none otherwise."""
    density: float | None = None
    """Of `ties`: the share of each delta's entries that is kept; none otherwise."""


@dataclass(slots=True)
class FoldStats:
    """What is counted while weights are folded."""

    num_layers: int
    changed: int = 0
    total: int = 0
    largest: float = 0.0
    lost: float = 0.0
    squares: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.squares = [0.0] * self.num_layers

    def count(self, projection: str, weight: Tensor, delta: Tensor, exact: Tensor, folded: Tensor) -> None:
        """`exact` is overwritten."""
        error = exact.sub_(folded)
        self.changed += int((folded != weight).sum())
        self.total += folded.numel()
        self.lost += float(torch.linalg.vector_norm(error)) ** 2
        largest = float(error.abs_().max())
        self.largest = max(self.largest, largest if math.isfinite(largest) else math.inf)
        self.squares[layer_of(projection)] += float(torch.linalg.vector_norm(delta)) ** 2


def make_merge_plan(
    branches: Sequence[MergeInput],
    weights: Mapping[str, float],
    *,
    method: Method = "mean",
    scale: float = 1.0,
    rank: int | None = None,
    density: float = 0.2,
) -> MergePlan:
    """With equal weights where none are given. `rank` is for svd, the largest branch's by default; density for ties."""
    names = [branch.name for branch in branches]
    _check_numbers(names, weights, scale, density)
    given = [weights.get(name, 1.0) for name in names]
    total = math.fsum(given)
    if rank is not None and method != "svd":
        raise UserError(f"--rank {rank}: {method} has its own; leave it out, or take svd")
    if rank is None:
        rank = max(branch.adapter.rank for branch in branches)
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


def fold(base: MergeBase, mix: MergePlan, target: Path) -> Record:
    """The merged checkpoint in a new folder, which appears whole or not at all. Its record is in it."""
    tally = FoldStats(base.shape.num_layers)
    with appearing(target) as draft:
        for path in sorted(base.folder.iterdir()):
            if path.is_file() and (path.suffix in _COPIED or path.name == "LICENSE"):
                shutil.copyfile(path, draft / path.name)
        for shard in base.shards:
            _fold_shard(shard, base.shape, mix, draft / shard.path.name, tally)
        if not math.isfinite(tally.largest):
            raise UserError(f"{target}: weights beyond the range of the base's dtype; take a lower --scale")
        record = _record(base, mix, tally)
        (draft / RECORD).write_text(record.model_dump_json(indent=1) + "\n")
        write_card(draft, record, {})
    return record


def write_adapter(base: MergeBase, mix: MergePlan, target: Path) -> None:
    """The merged delta as an adapter in a new folder: stacked, or of the rank of `svd`. Its scale is 1."""
    if mix.method == "ties":
        raise UserError(f"{target}: ties makes no adapter, its delta has every rank; take mean or svd")
    rank = mix.rank or sum(branch.adapter.rank for branch in mix.branches)
    shapes = base.shape.shapes(rank)
    with appearing(target) as draft:
        with (draft / WEIGHTS).open("wb") as file:
            file.write(_header(shapes))
            for projection in sorted(projections(base.shape)):
                up_OR, down_RI = merged_factors(mix, projection)
                for key, tensor in (("lora_A", down_RI), ("lora_B", up_OR)):
                    assert tensor.shape == shapes[f"{PREFIX}{projection}.{key}.weight"]
                    file.write(_bytes(tensor))
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(TARGETS),
        }
        (draft / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def merged_factors(mix: MergePlan, projection: str) -> tuple[Tensor, Tensor]:
    """B [O, R] and A [R, I] of the merged delta of one projection."""
    pairs = [branch.factors(projection) for branch in mix.branches]
    up_OR = torch.cat([up * (share * mix.scale) for (up, _), share in zip(pairs, mix.shares, strict=True)], dim=1)
    down_RI = torch.cat([down for _, down in pairs])
    return (up_OR, down_RI) if mix.rank is None else truncated(up_OR, down_RI, mix.rank)


def truncated(up_OR: Tensor, down_RI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest product of a rank, by the singular values of a small matrix between two orthonormal ones."""
    left_OR, up_RR = torch.linalg.qr(up_OR.double())
    right_IR, down_RR = torch.linalg.qr(down_RI.double().T)
    left_RR, values_R, right_RR = torch.linalg.svd(up_RR @ down_RR.T, full_matrices=False)
    root_r = values_R[:rank].sqrt()
    up_Or = left_OR @ (left_RR[:, :rank] * root_r)
    down_rI = (root_r[:, None] * right_RR[:rank]) @ right_IR.T
    short = rank - values_R[:rank].numel()  # a projection may be smaller than the rank
    return pad(up_Or, (0, short)).float(), pad(down_rI, (0, 0, 0, short)).float()


def ties(deltas: Sequence[Tensor], thresholds: Sequence[float], shares: Sequence[float]) -> Tensor:
    """Trim below the thresholds, elect a sign, and take the weighted mean of those that have it. Of any rows alike."""
    kept = [delta * (delta.abs() >= threshold) for delta, threshold in zip(deltas, thresholds, strict=True)]
    vote, mean, weight = (torch.zeros_like(deltas[0]) for _ in range(3))
    for delta, share in zip(kept, shares, strict=True):
        vote.add_(delta, alpha=share)
    vote.sign_()
    for delta, share in zip(kept, shares, strict=True):
        agrees = (delta.sign() == vote).to(delta.dtype)
        mean.addcmul_(delta, agrees, value=share)
        weight.add_(agrees, alpha=share)
    return mean / weight.where(weight > 0, 1)


def trim_threshold(delta: Tensor, density: float) -> float:
    """The least size of the largest entries, of which there are `density` of all."""
    place = delta.numel() - max(1, int(density * delta.numel()))
    return float(np.partition(delta.abs().flatten().numpy(), place)[place])


def inner_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """<B_j A_j, B_k A_k> for all branches [K, K], from products of rank by rank: no delta is made."""
    up_OR = torch.cat([up for up, _ in pairs], dim=1).double()
    down_RI = torch.cat([down for _, down in pairs]).double()
    product_RR = (up_OR.T @ up_OR) * (down_RI @ down_RI.T)
    ranks = [down.shape[0] for _, down in pairs]
    return torch.stack([torch.stack([b.sum() for b in a.split(ranks, 1)]) for a in product_RR.split(ranks)])


def cosines(base: MergeBase, branches: Sequence[MergeInput]) -> dict[str, float | None]:
    """Between branches' deltas, all projections as one vector."""
    product_KK = torch.zeros(len(branches), len(branches), dtype=torch.float64)
    for projection in projections(base.shape):
        product_KK += inner_products([branch.factors(projection) for branch in branches])
    found: dict[str, float | None] = {}
    for (j, one), (k, other) in itertools.combinations(enumerate(branches), 2):
        norm = float((product_KK[j, j] * product_KK[k, k]).sqrt())
        found[f"{one.name} {other.name}"] = float(product_KK[j, k]) / norm if norm > 0 else None
    return found


def check_new(target: Path) -> None:
    """That it can be made."""
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists; name a new folder")
    if not target.parent.is_dir():
        raise UserError(f"{target}: {target.parent} is no folder; make it first")


@contextmanager
def appearing(target: Path) -> Generator[Path]:
    """A folder to fill, beside the target, which it becomes at the end of the block; after an error nothing is left."""
    check_new(target)
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with disk_full_as_user_error(str(target)):
            draft.mkdir()
            yield draft
            for path in draft.iterdir():
                sync(path)
            draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _fold_shard(shard: Shard, shape: BaseShape, mix: MergePlan, target: Path, tally: FoldStats) -> None:
    """The file again, with the projections' rows changed on the way."""
    folded = {f"{projection}.weight": projection for projection in projections(shape)}
    with shard.path.open("rb") as reader, target.open("wb") as writer:
        reader.seek(len(shard.header))
        writer.write(shard.header)
        for place in shard.places:
            if place.key in folded:
                _fold_tensor(place, folded[place.key], mix, reader, writer, tally)
            else:
                _copy(reader, writer, place.num_bytes)


def _fold_tensor(
    place: TensorEntry, projection: str, mix: MergePlan, reader: BufferedReader, writer: BinaryIO, tally: FoldStats
) -> None:
    delta_rows = merged_rows(mix, projection)
    num_rows, num_inputs = place.shape
    step = max(1, _BLOCK // num_inputs)
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        weight_oI = torch.empty(rows.stop - start, num_inputs, dtype=DTYPES[place.dtype])
        count = reader.readinto(_bytes(weight_oI))
        assert count == weight_oI.nbytes, f"{place.key}: the base is shorter than its header says"
        delta_oI = delta_rows(rows)
        exact_oI = weight_oI.float().add_(delta_oI)
        folded_oI = exact_oI.to(weight_oI.dtype, copy=True)
        writer.write(_bytes(folded_oI))
        tally.count(projection, weight_oI, delta_oI, exact_oI, folded_oI)


def merged_rows(mix: MergePlan, projection: str) -> Rows:
    """The merged delta of one projection, to be asked for by rows: in full it is ten times its factors."""
    if mix.density is None:
        up_OR, down_RI = merged_factors(mix, projection)
        return lambda rows: up_OR[rows] @ down_RI
    pairs, density = [branch.factors(projection) for branch in mix.branches], mix.density
    thresholds = [trim_threshold(up_Or @ down_rI, density) for up_Or, down_rI in pairs]
    return lambda rows: ties([up[rows] @ down for up, down in pairs], thresholds, mix.shares).mul_(mix.scale)


def _copy(reader: BufferedReader, writer: BinaryIO, num_bytes: int) -> None:
    while num_bytes > 0:
        chunk = reader.read(min(num_bytes, 2**24))
        assert chunk, "the base is shorter than its header says"
        writer.write(chunk)
        num_bytes -= len(chunk)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.contiguous().view(torch.uint8).numpy())).cast("B")


def _record(base: MergeBase, mix: MergePlan, tally: FoldStats) -> Record:
    norm = math.sqrt(math.fsum(tally.squares))
    dtypes = {place.dtype for shard in base.shards for place in shard.places if place.key.startswith(LAYERS)}
    return Record(
        base=base.name,
        base_digest=base.digest,
        branches=tuple(
            BranchRecord(
                name=branch.name,
                source=branch.source,
                digest=branch.digest,
                share=share,
                rank=branch.adapter.rank,
                alpha=branch.adapter.alpha,
                rslora=branch.adapter.is_rank_stabilised,
            )
            for branch, share in zip(mix.branches, mix.shares, strict=True)
        ),
        method=mix.method,
        scale=mix.scale,
        rank=mix.rank,
        density=mix.density,
        dtype=", ".join(sorted(dtypes)),
        changed=tally.changed / tally.total,
        lost=math.sqrt(tally.lost) / norm if norm > 0 else None,
        largest_difference=tally.largest,
        layer_norms=tuple(math.sqrt(square) for square in tally.squares),
        cosines=cosines(base, mix.branches),
    )


def _check_numbers(names: Sequence[str], weights: Mapping[str, float], scale: float, density: float) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two adapters are called {twice[0]}; name them: one={twice[0]}@3 other={twice[0]}@9")
    if weights and set(weights) != set(names):
        odd = sorted(set(weights) ^ set(names))[0]
        what = "names no adapter of this merge" if odd in weights else "has no weight"
        raise UserError(f"--weights: {shown(odd)} {what}; give one each: {','.join(f'{n}=1' for n in names)}")
    if weights and not (all(0 <= w < math.inf for w in weights.values()) and sum(weights.values()) > 0):
        raise UserError("--weights: take numbers from 0, not all of them 0")
    if not 0 < scale < math.inf:
        raise UserError(f"--scale {scale}: take a number above 0")
    if not 0 < density <= 1:
        raise UserError(f"--density {density}: take a share above 0 and at most 1")


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Of a safetensors file of float32 tensors in the order of their keys."""
    header: dict[str, Any] = {}
    end = 0
    for key in sorted(shapes):
        begin, end = end, end + 4 * math.prod(shapes[key])
        header[key] = {"dtype": "F32", "shape": shapes[key], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
