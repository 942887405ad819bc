"""Data sets as prompts: rows through a column mapping, checked at load and built when asked for.

Media stay on disk, encoded, until a prompt is asked for; at load only their headers are read. A mistake is one line
that names the file, the row and the column.

Left out: decoding to pixels (service.media), cutting of long prompts (`lengths` drops them), streaming.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapters.errors import UserError
from service.media import Limits
from trainer.data.prompts import PromptError
from trainer.data.questions import AnswerAs
from trainer.data.records import Records, read_records
from trainer.data.rows import Check, PromptSizes, Reading, build, check_draft, draft_of, measure, medium_of
from trainer.parts import Prompt

COLUMNS = {"prompt": "prompt", "answer": "answer"}
"""The columns of a data set that is mapped no further. Media have none: most data sets are text."""
KEYS = ("prompt", "answer", "images", "videos")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSet:
    """The usable rows of a data set. Indexing builds a prompt and reads its media."""

    records: tuple[Records, ...]
    reading: Reading
    positions: tuple[tuple[int, int], ...]
    """The row of each prompt: the index of its records, and its index in them."""
    digests: tuple[bytes, ...]
    """A hash of what each prompt is made of. A file counts with its path and size, bytes with themselves."""
    dropped: Counter[str]
    """Rows left out, by reason."""

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Prompt:
        number, row = self.positions[index]
        records = self.records[number]
        try:
            return build(draft_of(records.rows[row], self.reading, records.folder), self.reading)
        except PromptError as error:  # it was right when the set was opened: a file has changed since
            raise UserError(f"{self.label(index)}: {error}") from None

    @property
    def fingerprint(self) -> str:
        """A hash of the rows as prompts: not of where they lie, nor of how they are stored."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()

    def label(self, index: int) -> str:
        """The name of a prompt's row in errors."""
        number, row = self.positions[index]
        return f"{self.records[number].label}: row {row + 1}"

    def select(self, indices: Sequence[int]) -> "PromptSet":
        """The prompts with these indices, in their order."""
        positions, digests = (tuple(values[index] for index in indices) for values in (self.positions, self.digests))
        return replace(self, positions=positions, digests=digests)

    def keep(self, why_not: Callable[[PromptSizes], str | None]) -> "PromptSet":
        """The set without the prompts that `why_not` gives a reason against; they are counted under it. Of media only
        the headers are read."""
        dropped, indices = self.dropped.copy(), list[int]()
        for index, (number, row) in enumerate(self.positions):
            records = self.records[number]
            reason = why_not(measure(draft_of(records.rows[row], self.reading, records.folder), self.reading))
            if reason is None:
                indices.append(index)
            else:
                dropped[reason] += 1
        return replace(self.select(indices), dropped=dropped)


def load(
    name: str,
    *,
    capability: str,
    columns: Mapping[str, str | None] | None = None,
    split: str = "train",
    subset: str | None = None,
    files: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    suffix: str | None = None,
    media_root: str | Path | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    check: Check = "header",
    frames_fps: float = 2.0,
    options: str | Sequence[str] = (),
    answer_pattern: str | None = None,
    answer_as: AnswerAs | None = None,
    limits: Limits | None = None,
    cache: Path | None = None,
) -> PromptSet:
    """The usable rows of a file, a folder or a data set of the hub (see `read_records` for which).

    `columns` says which column holds the `prompt` (a text or chat messages), the `answer`, the `images` and the
    `videos`; a dot reaches into a column of objects. Media are bytes, `datasets` features, or paths; paths start from
    the folder of the file that names them, or from `media_root`, and nothing outside it is read. A list of images in
    the column of videos is one video of `frames_fps` frames a second. `limit` takes the first so many usable rows.
    `options`, `answer_pattern` and `answer_as` are those of `trainer.data.questions`.

    A row that cannot be used is an error, or is dropped and counted. `check="pixels"` decodes all media to find the
    damage that a header does not show.
    """
    for key in columns or {}:
        if key not in KEYS:
            raise UserError(f"capabilities.{capability}.data.columns: unknown key {key!r}; the keys are {_list(KEYS)}")
    reading = Reading(
        capability,
        COLUMNS | {key: column for key, column in (columns or {}).items() if column is not None},
        system,
        suffix,
        Path(media_root).expanduser().resolve() if media_root is not None else None,
        frames_fps,
        limits or Limits(),
        (options,) if isinstance(options, str) else tuple(options),
        answer_pattern,
        answer_as,
    )
    # A dotted name may be a column itself, or reach into the one before its first dot: both are read.
    mapped = (*reading.columns.values(), *reading.options)
    wanted = {top for column in mapped for top in (column, column.split(".")[0])}
    records = read_records(name, split=split, subset=subset, files=files, columns=wanted, cache=cache)
    _check_columns(name, records, reading)
    if warning := unmapped_media(name, records, reading):
        log.warning("%s", warning)
    return scan(name, records, reading, limit, on_bad_row, check)


def _check_columns(name: str, records: Sequence[Records], reading: Reading) -> None:
    known = dict.fromkeys(column for table in records for column in table.columns)
    options = [("options", column) for column in reading.options]
    for key, column in [*reading.columns.items(), *options]:
        # Without rows no column is known: that the file is empty is said later.
        if known and column not in known and column.split(".")[0] not in known:
            where = f"capabilities.{reading.capability}.data.columns.{key}"
            raise UserError(f"{name}: no column {column!r}; set {where} to one of {_list(known)}")


def unmapped_media(name: str, records: Sequence[Records], reading: Reading) -> str | None:
    """The columns that hold media by the look of their first rows, and that no key of `columns` names."""
    mapped = {column.split(".")[0] for column in (*reading.columns.values(), *reading.options)}
    kinds = {
        column: medium
        for table in records
        for row in table.first
        for column, value in row.items()
        if column not in mapped and (medium := medium_of(value))
    }
    if not kinds:
        return None
    columns = ", ".join(f"{column!r} ({kind})" for column, kind in kinds.items())
    keys = " and ".join(f'{kind} = "{column}"' for column, kind in kinds.items())
    return (
        f"{name}: prompts go without what looks like media in {columns}; "
        f"if they are about it, add {keys} to capabilities.{reading.capability}.data.columns"
    )


def scan(
    name: str,
    records: Sequence[Records],
    reading: Reading,
    limit: int | None = None,
    on_bad_row: Literal["error", "drop"] = "error",
    check: Check = "header",
) -> PromptSet:
    """The first `limit` usable rows, each of them checked."""
    positions: list[tuple[int, int]] = []
    digests: list[bytes] = []
    dropped: Counter[str] = Counter()
    for number, row, cells in ((n, r, cells) for n, table in enumerate(records) for r, cells in enumerate(table.rows)):
        if len(positions) == limit:  # only usable rows count
            break
        try:
            digests.append(check_draft(draft_of(cells, reading, records[number].folder), reading, check))
        except PromptError as error:
            if on_bad_row == "error":
                raise UserError(f"{records[number].label}: row {row + 1}: {error}") from None
            dropped[error.reason] += 1
        else:
            positions.append((number, row))
    if not positions:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
        raise UserError(f"{name}: no usable row" + (f"; dropped: {why}" if why else ": it is empty"))
    return PromptSet(tuple(records), reading, tuple(positions), tuple(digests), dropped)


def _list(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
