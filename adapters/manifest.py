"""What a revision is, beside its files: `manifest.json`, written last, and the digests that everything is checked by.

    digest = SHA-256 over the sorted lines `NAME SHA256` of the two adapter files, each line with its end

which a shell computes too: `sha256sum adapter_* | awk '{print $2" "$1}' | sort | sha256sum`. The optimiser's moments
are listed with their hash, but are no part of the digest: they are dropped from old revisions.

Left out: where revisions lie (`store`), and what an adapter must look like (`validate`).
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from adapters.errors import UserError
from adapters.names import Ref

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
OPTIMISER = "optimizer.safetensors"
MANIFEST = "manifest.json"
ADAPTER_FILES = (CONFIG, WEIGHTS)

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class DamagedError(UserError):
    """Files that are not what their manifest says, or a manifest that is none."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FileEntry(Frozen):
    sha256: Sha256
    bytes: Count


class Manifest(Frozen):
    """Everything that is known of a revision for good."""

    branch: str
    revision: Count
    parent: Count | None
    """The revision before; null for revision 0."""
    origin: str | None = None
    """The `branch@revision` whose files these are: of a fork's revision 0, and of a head that went back; else null."""
    base: Digest
    digest: Digest
    """The digest of the two adapter files; that of the base where there are none."""
    files: dict[str, FileEntry]
    """Empty for a revision 0 that is the base itself (B = 0)."""
    token: Count | None = None
    """The fencing token that it was published under."""
    job: str | None = None
    meta: dict[str, JsonValue] = {}
    """What the publisher adds: `seed`, `metrics`, `canary`, and `phase_end` (true keeps the optimiser's moments)."""
    created: datetime
    """The time of publishing, on the service's clock."""

    @property
    def ref(self) -> Ref:
        return Ref(self.branch, self.revision)

    @property
    def is_phase_end(self) -> bool:
        return self.meta.get("phase_end") is True

    @property
    def adapter_files(self) -> dict[str, FileEntry]:
        return {name: entry for name, entry in self.files.items() if name != OPTIMISER}

    @field_validator("meta")
    @classmethod
    def _meta_is_json(cls, meta: dict[str, JsonValue]) -> dict[str, JsonValue]:
        # pydantic lets NaN through in a JsonValue, and no other reader of JSON knows it.
        json.dumps(meta, allow_nan=False)
        return meta

    @model_validator(mode="after")
    def _digest_is_that_of_the_files(self) -> Self:
        if self.files and not set(ADAPTER_FILES) <= self.files.keys() <= {*ADAPTER_FILES, OPTIMISER}:
            raise ValueError(f"files: {', '.join(ADAPTER_FILES)} belong here, and {OPTIMISER} may")
        if self.digest != (adapter_digest(self.files) if self.files else self.base):
            raise ValueError("digest: not that of the files")
        return self


def adapter_digest(files: Mapping[str, FileEntry]) -> str:
    return _digest((name, files[name].sha256) for name in ADAPTER_FILES)


def files_digest(files: Mapping[str, Path]) -> str:
    """The digest of two adapter files, wherever they lie."""
    return _digest((name, _sha256(files[name])) for name in ADAPTER_FILES)


def folder_digest(folder: Path) -> str:
    return files_digest({name: folder / name for name in ADAPTER_FILES})


def base_digest(folder: Path) -> str:
    """The same rule over what decides a base's numbers: its config.json, *.safetensors and tokenizer.json.

    Left out: the chat template and the processor's settings, which an adapter does not depend on.
    """
    names = [name for name in ("config.json", "tokenizer.json") if (folder / name).is_file()]
    weights = [path.name for path in folder.glob("*.safetensors")]
    if "config.json" not in names or not weights:
        raise UserError(f"{folder}: no config.json with *.safetensors beside it; name the folder of a checkpoint")
    names += weights
    # Every byte is read, about 1 s for each 1.2 GB and core. Threads help: hashing lets go of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        return _digest(zip(names, pool.map(_sha256, [folder / name for name in names]), strict=True))


def read_manifest(folder: Path) -> Manifest:
    try:
        with _open_regular(folder / MANIFEST) as file:
            return Manifest.model_validate_json(file.read())
    except (OSError, ValidationError) as error:
        if isinstance(error, OSError):
            reason = error.strerror
        else:  # one line, and nothing of the file's content: the first problem says enough
            problem = error.errors(include_url=False, include_input=False)[0]
            reason = ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        raise DamagedError(f"{_short(folder)}: {MANIFEST}: {reason}; this is no whole revision") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Last of a revision's files; the caller makes it durable and visible."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")


def verify(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Hash the files again. DamagedError at the first that is not what its manifest says."""
    # A safetensors file with a flipped bit loads without a word, so this is the only guard.
    for name, entry in files.items():
        try:
            with _open_regular(folder / name) as file:
                # The size first: a file that was cut off is found without reading it.
                is_same = os.fstat(file.fileno()).st_size == entry.bytes
                is_same = is_same and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except OSError as error:
            raise DamagedError(f"{_short(folder)}: {name}: {error.strerror}; restore it or publish again") from None
        if not is_same:
            raise DamagedError(f"{_short(folder)}: {name} is not what the manifest says; restore it or publish again")


def _open_regular(path: Path):
    # NOFOLLOW: a link would lead out of the store. NONBLOCK: opening a pipe would wait for its other end.
    # Looked at when it is open: between a look at the name and the opening it could become another file.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "no regular file")
    return os.fdopen(descriptor, "rb")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(hashes: Iterable[tuple[str, str]]) -> str:
    # Sorted by the lines' bytes, as `LC_ALL=C sort` does.
    lines = sorted(f"{name} {sha256}\n" for name, sha256 in hashes)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _short(folder: Path) -> str:
    """BRANCH/REVISION: a message may leave this machine, its paths need not."""
    return f"{folder.parent.name}/{folder.name}"
