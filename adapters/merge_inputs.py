"""What a merge begins with: a base whose every projection was found, and adapters that were checked, all of it open.

Left out: what is made of them (`merge`).
"""

import json
import struct
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from adapters.errors import UserError
from adapters.manifest import WEIGHTS, base_digest, folder_digest, read_manifest, verify
from adapters.names import Ref, is_name, is_revision, shown
from adapters.store import RETIRED
from adapters.tensor_files import HALVES, MASTERS, header_problem
from adapters.validate import PREFIX, Adapter, BaseShape, base_shape, check_adapter

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_INDEX = "model.safetensors.index.json"
_MAX_RANK = 2**16
"""Above every rank there is: nothing here has an engine's limit."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file of the base, as the file's header lists it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    path: Path
    header: bytes
    """The first bytes of the file: the header's length, and the header."""
    entries: tuple[TensorEntry, ...]
    """In the order of their bytes, without gaps."""


@dataclass(frozen=True, slots=True)
class MergeBase:
    """A checkpoint that can be folded into."""

    name: str
    folder: Path
    digest: str
    shape: BaseShape
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class MergeInput:
    """A checked adapter. Its file is open: if it is deleted now, its content stays until the merge is done."""

    name: str
    source: str
    digest: str
    adapter: Adapter
    weights: Any
    dtype: str
    """Of its weights in the file; several are joined. The merge computes in float32 whatever it is."""
    sizes: Mapping[str, tuple[int, int]]
    """Outputs and inputs of every projection of the base; an adapter need not have them all."""

    def has(self, projection: str) -> bool:
        return f"{PREFIX}{projection}.lora_A.weight" in self.weights.keys()  # noqa: SIM118, a file and no mapping

    def factors(self, projection: str) -> tuple[Tensor, Tensor]:
        """scale_k B_k [O, r] and A_k [r, I]: an adapter's delta is their product."""
        if not self.has(projection):
            num_outputs, num_inputs = self.sizes[projection]
            return torch.zeros(num_outputs, self.adapter.rank), torch.zeros(self.adapter.rank, num_inputs)
        down_rI = self.weights.get_tensor(f"{PREFIX}{projection}.lora_A.weight").float()
        up_Or = self.weights.get_tensor(f"{PREFIX}{projection}.lora_B.weight").float()
        return up_Or * self.adapter.scale, down_rI


def open_base(folder: Path, name: str) -> MergeBase:
    """A UserError where it lacks a projection, or has one in a dtype that cannot be folded into."""
    shape = base_shape(folder)
    shards = tuple(_read_shard(path) for path in _weight_files(folder))
    entries = {entry.key: entry for shard in shards for entry in shard.entries}
    # All of them before anything is written: a fold of many GB would fail in its middle.
    for projection, wanted in projections(shape).items():
        entry = entries.get(f"{projection}.weight")
        if entry is None or entry.shape != wanted:
            problem = "is missing" if entry is None else f"has the shape {list(entry.shape)}, not {list(wanted)}"
            raise UserError(f"{folder}: {projection}.weight {problem}; take a checkpoint that is whole")
        if entry.dtype not in DTYPES:
            raise UserError(f"{folder}: {entry.key} is {entry.dtype}; take the checkpoint in {', '.join(DTYPES)}")
    return MergeBase(name, folder, base_digest(folder), shape, shards)


def open_revision(store: Path, ref: Ref, base: MergeBase, name: str | None = None) -> MergeInput:
    """A revision of a store that a service may be writing: nothing is locked, only what was committed is seen."""
    if not (store / "store.json").is_file():
        raise UserError(f"{store}: no store; name the folder that the service was given")
    ref = ref if ref.revision is not None else _head(store, ref)
    folder = store / ref.branch / str(ref.revision)
    # As the store itself: no link is followed, and a marked revision is gone though its files may be there still.
    if folder.is_symlink() or folder.parent.is_symlink() or (folder / RETIRED).exists() or not folder.is_dir():
        raise UserError(f"{store}: {ref} is not there, or retired; name a revision that is kept")
    manifest = read_manifest(folder)
    if manifest.ref != ref or not manifest.files:
        problem = f"its manifest is that of {manifest.ref}" if manifest.ref != ref else "it is the base itself"
        raise UserError(f"{store}: {ref}: {problem}; name another revision")
    if manifest.base != base.digest:
        raise UserError(
            f"{store}: {ref} is of the base {manifest.base}, not of {base.digest}; give its own with --base"
        )
    with _present(str(ref)):
        verify(folder, manifest.adapter_files)
        return _open(folder, base, name or ref.branch, str(ref), manifest.digest)


def open_folder(folder: Path, base: MergeBase, name: str | None = None) -> MergeInput:
    """An adapter as PEFT saves it."""
    name = folder.resolve().name if name is None else name
    if not is_name(name):
        raise UserError(f"{folder}: {shown(name)} is no name for it; give one: NAME={folder}")
    with _present(str(folder)):
        return _open(folder, base, name, folder.resolve().name, None)


def heads(store: Path) -> list[Ref]:
    """The newest revision of every branch of a store, by name."""
    names = sorted(path.name for path in store.iterdir() if path.is_dir() and is_name(path.name))
    return [_head(store, Ref(name)) for name in names]


def projections(shape: BaseShape) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every projection, by its module in the base."""
    return {
        f"{shape.architecture.layers}{layer}.{name}": (num_outputs, num_inputs)
        for layer in range(shape.num_layers)
        for name, (num_inputs, num_outputs) in shape.projections.items()
    }


def layer_of(projection: str) -> int:
    return int(projection.split(".")[-3])  # before its part of the layer and its name: `...layers.7.mlp.up_proj`


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names, if there is an index: a folder may hold the same weights in two forms."""
    index = folder / _INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    names = set(cast(dict[str, str], json.loads(index.read_text())["weight_map"]).values())
    # A name with a folder in it would lead out of the checkpoint: the index came from the hub.
    missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
    if missing:
        raise UserError(f"{folder}: {missing[0]} is missing; fetch the checkpoint again")
    return [folder / name for name in sorted(names)]


def _read_shard(path: Path) -> Shard:
    if (problem := header_problem(path)) is not None:
        raise UserError(f"{path.parent}: {problem}")
    with path.open("rb") as file:
        size = file.read(8)
        header = size + file.read(struct.unpack("<Q", size)[0])
    listed = cast(dict[str, Any], json.loads(header[8:]))
    spans = sorted((*tensor["data_offsets"], key) for key, tensor in listed.items() if key != "__metadata__")
    entries = (TensorEntry(k, listed[k]["dtype"], tuple(listed[k]["shape"]), end - begin) for begin, end, k in spans)
    return Shard(path, header, tuple(entries))


def _head(store: Path, ref: Ref) -> Ref:
    """The newest revision that is there now."""
    folder = store / ref.branch
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    revisions = [int(name) for name in names if is_revision(name) and not (folder / name / RETIRED).exists()]
    if not revisions:
        raise UserError(f"{store}: no branch {ref.branch}; name one that was published to")
    return Ref(ref.branch, max(revisions))


def _open(folder: Path, base: MergeBase, name: str, source: str, digest: str | None) -> MergeInput:
    adapter = check_adapter(folder, base.shape, _MAX_RANK, dtypes=MASTERS | HALVES)
    weights = safe_open(folder / WEIGHTS, framework="pt")
    dtype = ", ".join(sorted({str(weights.get_slice(key).get_dtype()) for key in weights.keys()}))  # noqa: SIM118
    return MergeInput(name, source, digest or folder_digest(folder), adapter, weights, dtype, projections(base.shape))


@contextmanager
def _present(source: str) -> Generator[None]:
    """The service may retire a revision while it is read."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{source}: went away while it was read; name a revision that is kept") from None
