"""Files of tensors as bytes: whether one is safetensors, its largest values, and the copy that an engine reads.

Only safetensors is read, its header is bounded before it is parsed, and no pickle is ever opened. Left out: which
tensors an adapter has (`validate`).
"""

import json
import math
import shutil
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from adapters.manifest import CONFIG, WEIGHTS

Shape = tuple[int, ...]

MASTERS = frozenset({"F32"})
"""The dtype of what is trained and published."""
HALVES = frozenset({"F16", "BF16"})
"""Dtypes of 16 bits, which an adapter may have that is only merged."""
HEADER_BYTES = 2**20
"""The largest header of a safetensors file. An adapter of 80 layers has 1,120 tensors and 0.2 MB of it, its moments
three times that; a header of 250,000 tensors takes ten seconds to look through."""
# Pickles of protocol 2 to 5, and the zip and gzip archives that torch.save and others write. They are known by their
# first bytes, never opened: unpickling runs whatever the file says.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")


def header_problem(path: Path) -> str | None:
    """Why a file is not safetensors, before any of its tensors is read; None where it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)  # 8 bytes of length, and the brace of the header
    if len(head) < 9 or head[8:] != b"{" or struct.unpack("<Q", head[:8])[0] > min(HEADER_BYTES, size - 8):
        # Only now: 640 in little-endian bytes begins like a pickle, and is a fine length of a header.
        if head.startswith(_PICKLES):
            return f"{path.name}: a pickle or an archive, not safetensors; write it with safetensors.torch.save_file"
        return f"{path.name}: no safetensors header of at most {HEADER_BYTES} bytes; cut off, or another kind of file"
    try:
        with safe_open(path, framework="numpy"):
            return None
    except (SafetensorError, OSError):
        return f"{path.name}: damaged: header and data do not fit together"


def maxima(path: Path, dtypes: Collection[str] = MASTERS) -> dict[str, float]:
    """The largest absolute value of each tensor of these dtypes; NaN where one is in it."""
    # By torch where 16 bits are asked for, as NumPy has no bfloat16; else without it, for its import takes seconds.
    with safe_open(path, framework="numpy" if dtypes == MASTERS else "pt") as file:
        keys = [key for key in sorted(file.keys()) if file.get_slice(key).get_dtype() in dtypes]
        return {key: float(np.abs(_values(file.get_tensor(key))).max(initial=0.0)) for key in keys}


def _values(tensor: Any) -> NDArray[np.float32]:
    return cast(NDArray[np.float32], tensor if isinstance(tensor, np.ndarray) else tensor.float().numpy())


def served_copy(source: Path, target: Path, dtype: Literal["bfloat16", "float32"]) -> None:
    """The adapter in the engine's dtype, in a new folder that appears whole or not at all."""
    draft = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir(parents=True)
    try:
        shutil.copyfile(source / CONFIG, draft / CONFIG)
        if dtype == "float32":
            shutil.copyfile(source / WEIGHTS, draft / WEIGHTS)
        else:
            _write_bfloat16(source / WEIGHTS, draft / WEIGHTS)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_bfloat16(source: Path, target: Path) -> None:
    import torch  # here, as checking an adapter needs none, and its import takes seconds

    # Tensor by tensor: safetensors' own writers hold the interpreter's lock, and the whole file in memory.
    with safe_open(source, framework="pt") as masters, target.open("wb") as file:
        shapes: dict[str, Shape] = {key: tuple(masters.get_slice(key).get_shape()) for key in sorted(masters.keys())}
        file.write(safetensors_header(shapes, "BF16"))
        for key in shapes:
            file.write(masters.get_tensor(key).to(torch.bfloat16).view(torch.uint8).numpy())


def safetensors_header(shapes: Mapping[str, Shape], dtype: Literal["BF16", "F32"]) -> bytes:
    """The beginning of a file whose tensors follow in the order of their keys."""
    header: dict[str, Any] = {}
    end = 0
    for key in sorted(shapes):
        begin, end = end, end + {"BF16": 2, "F32": 4}[dtype] * math.prod(shapes[key])
        header[key] = {"dtype": dtype, "shape": shapes[key], "data_offsets": [begin, end]}
    return header_bytes(header)


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The length of a header, and the header: what stands before the tensors of a file."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors lie at multiples of 8, as a memory map wants them
    return struct.pack("<Q", len(text)) + text
