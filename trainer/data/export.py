"""Rows of a data set as a JSON Lines file that a recipe can name instead: as they were, with something added.

Rows keep all their columns, mapped or not. Media that are files stay where they are. Those that lie in the rows, as
in Parquet and on the hub, are written beside the file, FILE.media/HASH.png for FILE.jsonl, and the row names them. Then
all paths start from the folder of the file; else from where they started, which the recipe has to say in `media_root`
when it is another folder. What JSON has no form for, such as a date, is written as its text. A row of generated
questions has the columns prompt and answer, and images or videos.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from adapters.errors import UserError
from service.media.limits import demuxer, image_format
from trainer.data.datasets import PromptSet
from trainer.data.held_out import held_out_data
from trainer.data.prompts import Prompts
from trainer.data.records import Row, read_records
from trainer.data.rows import bytes_or_path, cell, keys_of
from trainer.recipe import CapabilityConfig, Data, DatasetData

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "matroska": ".mkv", "mov": ".mp4", None: ""}


@dataclass(frozen=True, slots=True)
class OriginalRows:
    """The rows that prompts were made of, by the index of the prompt."""

    row: Callable[[int], Row]
    root: Callable[[int], Path]
    """The folder that paths in the row start from."""
    media: tuple[str, ...]
    """The columns that hold media."""


def original_rows(prompts: Prompts, data: Data) -> OriginalRows:
    """The rows of a data set with all their columns; of generated questions, rows that say the same."""
    if not isinstance(prompts, PromptSet) or not isinstance(data, DatasetData):

        def generated_row(index: int) -> Row:
            prompt = prompts[index]
            (message,) = prompt.messages
            text = "".join(part.get("text", f"<{part['type']}>") for part in message["content"])
            media = {"images": list(prompt.images), "videos": list(prompt.videos)}
            return {"prompt": text, "answer": prompt.answer, **{kind: files for kind, files in media.items() if files}}

        return OriginalRows(generated_row, lambda _: Path(), ("images", "videos"))
    # Read again: the prompts were read with the mapped columns only.
    tables = read_records(data.name, split=data.split, subset=data.subset, files=data.files)
    reading, positions = prompts.reading, prompts.positions

    def row(index: int) -> Row:
        number, row_index = positions[index]
        return tables[number].rows[row_index]

    def root(index: int) -> Path:
        return reading.media_root or tables[positions[index][0]].folder

    media = tuple(reading.columns[key] for key in ("images", "videos") if key in reading.columns)
    return OriginalRows(row, root, media)


def write(file: Path, rows: OriginalRows, additions: Mapping[int, Mapping[str, Any]]) -> Path:
    """Writes the rows of the prompts in `additions`, each with what is added. The folder that paths start from."""
    media = _MediaWriter(file.resolve().with_suffix(".media"), _new_root(file.resolve().parent, rows, additions))
    draft = file.with_name(f".{file.name}.draft")
    try:
        with draft.open("wb") as out:
            for index, added in additions.items():
                row, root = rows.row(index), rows.root(index)
                for column in rows.media:
                    row = _changed(row, keys_of(row, column), lambda value, root=root: media.relocated(value, root))
                cells = {key: media.plain(value) for key, value in row.items()}
                line = json.dumps({**cells, **added}, ensure_ascii=False)
                out.write(line.encode("utf-8", "backslashreplace") + b"\n")  # half a character is \udXXX in JSON too
            out.flush()
            os.fsync(out.fileno())  # before the rename: a crash must not leave the name on an empty file
        draft.replace(file)
    except OSError as error:
        raise UserError(f"{error.filename or file}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return media.root


def settings(name: str, capability: CapabilityConfig, prompts: Prompts, file: Path, root: Path) -> Iterator[str]:
    """The `--set` words that make a recipe with this capability read the file whose paths start from `root`."""
    data, path = capability.data, f"--set=capabilities.{name}"
    if not isinstance(data, DatasetData):
        columns = {kind: kind for kind in ("images", "videos") if getattr(prompts[0], kind)}
        yield f"{path}.data={_toml({'type': 'dataset', 'name': str(file), 'columns': columns})}"
        # A data set has no validation split of its own: the generated one stays what is measured.
        if capability.held_out is None and (held_out := held_out_data(capability)):
            yield f"{path}.held_out={_toml(held_out.model_dump(exclude_defaults=True))}"
        return
    yield f"{path}.data.name={file}"
    # A file is one split, `train`, and its paths start from its own folder: only what differs must be said.
    if data.split != "train":
        yield f"{path}.data.split=train"
    given = Path(data.media_root).expanduser().resolve() if data.media_root is not None else None
    if root != (given or file.resolve().parent):
        yield f"{path}.data.media_root={'null' if root == file.resolve().parent else root}"


def _toml(value: Any) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return "{" + ", ".join(f"{key}={_toml(item)}" for key, item in cast(Mapping[str, Any], value).items()) + "}"


def _new_root(folder: Path, rows: OriginalRows, indices: Iterable[int]) -> Path:
    """The file's own folder as soon as one row brings its media along; else one that all paths lie in."""
    roots: set[Path] = set()
    for index in indices if rows.media else ():
        row = rows.row(index)
        if any(_is_embedded(cell(row, column)) for column in rows.media):
            return folder
        roots.add(rows.root(index))
    return Path(os.path.commonpath(roots)) if roots else folder


@dataclass(frozen=True, slots=True)
class _MediaWriter:
    """Writes media that have no file, and names all media as a reader of the new file finds them."""

    folder: Path
    root: Path

    def relocated(self, value: Any, root: Path) -> Any:
        """A cell of media whose paths started from `root`; a path that need not change stays as it stands."""
        if isinstance(value, list):
            return [self.relocated(item, root) for item in cast(list[Any], value)]
        medium = bytes_or_path(value)
        if isinstance(medium, bytes):
            return self.write(medium)
        if not isinstance(medium, str) or not medium or root == self.root:
            return value
        path = (root / medium).resolve()
        if path.is_relative_to(self.root):
            return path.relative_to(self.root).as_posix()
        return self.write(path.read_bytes())  # a file outside the root would be refused when the rows are read

    def plain(self, value: Any) -> Any:
        """The same value for JSON, which knows no bytes and no dates."""
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, list):
            return [self.plain(item) for item in cast(list[Any], value)]
        medium = bytes_or_path(value)
        if isinstance(medium, bytes):
            return self.write(medium)
        if isinstance(value, Mapping):
            return {str(key): self.plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
        return str(value)

    def write(self, data: bytes) -> str:
        """The path of a file with these bytes, written unless it is there."""
        suffix = _SUFFIXES[image_format(data[:16]) or demuxer(data[:16])]
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"  # many questions share a picture
        # The size tells a file that an earlier, interrupted export has left cut short.
        if not path.exists() or path.stat().st_size != len(data):
            self.folder.mkdir(exist_ok=True)
            path.write_bytes(data)
        return path.relative_to(self.folder.parent).as_posix()


def _is_embedded(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_embedded, cast(list[Any], value)))
    return isinstance(bytes_or_path(value), bytes)


def _changed(row: Row, keys: Sequence[str], change: Callable[[Any], Any]) -> Row:
    """The row with another value where the keys lead, if they lead anywhere."""
    first, *rest = keys
    if first not in row:
        return row
    inner = row[first]
    if not rest:
        return {**row, first: change(inner)}
    return {**row, first: _changed(inner, rest, change)} if isinstance(inner, Mapping) else row
