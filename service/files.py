"""The files of runs as the page reads them: with an engine beside them, or in a folder that `coevo look` was given.

    OUT/runs/ID/...          what runs told            OUT/store/BRANCH/REVISION    revisions, .media
    OUT/recipe.json, logs/, results.json, merged/      where `coevo run` made the folder

Nothing is written here.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import ADAPTER_FILES, MANIFEST, Manifest, read_manifest
from adapters.merge_record import RECORD
from adapters.names import MERGED, Ref, is_name, is_revision
from adapters.store import RETIRED
from service.runs import EVENTS, Runs
from service.series import Series

MEDIA = ".media"
MERGED_ADAPTER = "merged-adapter"
"""The folder of the merge as one adapter, beside the runs."""
_MEDIA_ID = re.compile(r"sha256:([0-9a-f]{64})")
_LOG = re.compile(r"[a-z][a-z0-9_.-]{0,63}\.log")
_LOG_BYTES = 256 * 1024
"""Of a log in one answer: some thousand lines."""


@dataclass(eq=False, slots=True)
class RunFiles:
    runs: Runs
    folder: Path
    """Of all runs."""
    store: Path
    base: str | None = None
    """Whose tokenizer tells the tokens."""
    is_read_only: bool = False
    _series: dict[str, Series] = field(default_factory=dict[str, Series])
    _tokenizers: list[Tokenizer | None] = field(default_factory=list["Tokenizer | None"])

    def series(self, run: str) -> Series:
        """The run's events as columns, as far as they go now."""
        # Kept between requests: what was read once of a long run is not read again.
        series = self._series.setdefault(run, Series(self.folder / run / EVENTS))
        series.refresh()
        return series

    @property
    def tokenizer(self) -> Tokenizer | None:
        if not self._tokenizers:  # at the first prompt that is looked at; most screens need none
            try:
                # A run may be looked at where its base is not.
                path = None if self.base is None else locate(self.base) / "tokenizer.json"
            except UserError:
                path = None
            self._tokenizers.append(Tokenizer.from_file(str(path)) if path and path.is_file() else None)
        return self._tokenizers[0]

    def media(self, id: str) -> bytes | None:
        match = _MEDIA_ID.fullmatch(id)
        path = self.store / MEDIA / match[1] if match else None
        return path.read_bytes() if path and path.is_file() else None

    # ---- revisions ----

    def refs(self) -> list[Ref]:
        """Every revision that ever was, retired ones too."""
        if not self.store.is_dir():
            return []
        branches = sorted(path for path in self.store.iterdir() if is_name(path.name) and path.is_dir())
        numbers = ((path.name, int(sub.name)) for path in branches for sub in path.iterdir() if is_revision(sub.name))
        return [Ref(*pair) for pair in sorted(numbers)]

    def manifest(self, ref: Ref) -> Manifest | None:
        folder = self.store / ref.branch / str(ref.revision)
        return read_manifest(folder) if (folder / MANIFEST).is_file() else None

    def is_retired(self, ref: Ref) -> bool:
        return (self.store / ref.branch / str(ref.revision) / RETIRED).exists()

    # ---- what `coevo run` keeps beside the runs ----

    @property
    def out(self) -> Path | None:
        """The folder of `coevo run`; None where the service was started by itself."""
        return self.folder.parent if (self.folder.parent / "recipe.json").is_file() else None

    def json(self, *names: str) -> Any:
        path = None if self.out is None else self.out.joinpath(*names)
        return json.loads(path.read_bytes()) if path and path.is_file() else None

    def merged_adapter(self) -> dict[str, Path]:
        """Files of the merge as one adapter; none before it is made."""
        folder = None if self.out is None else self.out / MERGED_ADAPTER
        is_whole = folder is not None and all((folder / name).is_file() for name in ADAPTER_FILES)
        return {name: folder / name for name in ADAPTER_FILES} if folder and is_whole else {}

    def results(self) -> tuple[Any, Any, list[dict[str, Any]]]:
        return self.json("results.json"), self.json(MERGED, RECORD), self.json("scales.json") or []

    def logs(self) -> Iterator[Path]:
        if self.out is not None:
            yield from sorted(path for path in (self.out / "logs").glob("*.log") if _LOG.fullmatch(path.name))

    def log(self, name: str, after: int | None) -> tuple[list[str], int] | None:
        """Whole lines from a byte on, and the byte behind them; without one, the log's end."""
        # By comparing with what is there, and not by joining a name to a folder: nothing to climb out of.
        path = next((path for path in self.logs() if path.name == name), None)
        if path is None:
            return None
        with path.open("rb") as file:
            size = path.stat().st_size
            begin = max(0, size - _LOG_BYTES) if after is None else min(after, size)
            file.seek(begin)
            text = file.read(_LOG_BYTES)
        whole = text[: text.rfind(b"\n") + 1]  # the rest is still being written, or comes with the next answer
        lines = whole.decode(errors="replace").splitlines()
        return (lines[1:] if after is None and begin else lines), begin + len(whole)
