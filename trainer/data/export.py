"""Rows of a data set as a JSON Lines file that a recipe can name instead: as they were, with something added.

Rows keep all their columns, mapped or not. Media that are files stay where they are. Those that lie in the rows, as
in Parquet and on the hub, are written beside the file, FILE.media/HASH.png for FILE.jsonl, and the row names them. Then
all paths start from the folder of the file; else from where they started, which the recipe has to say in `media_root`
when it is another folder. What JSON has no form for, such as a date, is written as its text. A row of generated
questions has the columns prompt and answer, and images or videos.

Left out: which rows (`pass_rates`).
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
from trainer.parts import Prompt
from trainer.recipe import CapabilityConfig, DatasetData, MiniatureData

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "matroska": ".mkv", "mov": ".mp4", None: ""}


@dataclass(frozen=True, slots=True)
class Original:
    """The rows that prompts were made of, by the place of the prompt."""

    row: Callable[[int], Row]
    root: Callable[[int], Path]
    """Where the paths in it start from."""
    media: tuple[str, ...]
    """The columns that hold media."""


def original(prompts: Prompts, data: MiniatureData | DatasetData) -> Original:
    if not isinstance(prompts, PromptSet) or isinstance(data, MiniatureData):
        return Original(lambda place: _generated(prompts[place]), lambda _: Path(), ("images", "videos"))
    records = read_records(data.name, split=data.split, subset=data.subset, files=data.files)  # with every column
    reading, places = prompts.reading, prompts.places

    def row(place: int) -> Row:
        number, index = places[place]
        return records[number].rows[index]

    def root(place: int) -> Path:
        return reading.media_root or records[places[place][0]].folder

    return Original(row, root, tuple(reading.columns[key] for key in ("images", "videos") if key in reading.columns))


def _generated(prompt: Prompt) -> Row:
    (message,) = prompt.messages
    text = "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
    media = {"images": list(prompt.images), "videos": list(prompt.videos)}
    return {"prompt": text, "answer": prompt.answer, **{kind: several for kind, several in media.items() if several}}


def write(file: Path, rows: Original, added: Mapping[int, Mapping[str, Any]]) -> Path:
    """The rows of the places in `added`, each with what is added to it. Where paths in the file start from."""
    shelf = _Shelf(file.resolve().with_suffix(".media"), _new_root(file.resolve().parent, rows, added))
    draft = file.with_name(f".{file.name}.draft")
    try:
        with draft.open("wb") as out:
            for place, more in added.items():
                line = json.dumps({**_portable(rows, place, shelf), **more}, ensure_ascii=False)
                out.write(line.encode("utf-8", "backslashreplace") + b"\n")  # half a character is \udXXX in JSON too
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        raise UserError(f"{error.filename or file}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
    return shelf.root


def settings(name: str, capability: CapabilityConfig, prompts: Prompts, file: Path, root: Path) -> Iterator[str]:
    """What `--set` makes a recipe with this capability read the file whose paths start from `root`."""
    data, path = capability.data, f"--set=capabilities.{name}"
    if isinstance(data, MiniatureData):
        columns = {kind: kind for kind in ("images", "videos") if getattr(prompts[0], kind)}
        yield f"{path}.data={_toml({'type': 'dataset', 'name': str(file), 'columns': columns})}"
        if capability.held_out is None and (held_out := held_out_data(capability)):
            yield f"{path}.held_out={_toml(held_out.model_dump(exclude_defaults=True))}"
        return
    yield f"{path}.data.name={file}"
    if data.split != "train":
        yield f"{path}.data.split=train"
    given = Path(data.media_root).expanduser().resolve() if data.media_root is not None else None
    if root != (given or file.resolve().parent):
        yield f"{path}.data.media_root={'null' if root == file.resolve().parent else root}"


def _toml(value: Any) -> str:
    if not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return "{" + ", ".join(f"{key}={_toml(one)}" for key, one in cast(Mapping[str, Any], value).items()) + "}"


def _new_root(folder: Path, rows: Original, places: Iterable[int]) -> Path:
    """The file's own folder as soon as one row brings its media along; else one that all paths lie in."""
    roots: set[Path] = set()
    for place in places if rows.media else ():
        row = rows.row(place)
        if any(_is_embedded(_cell(row, column)) for column in rows.media):
            return folder
        roots.add(rows.root(place))
    return Path(os.path.commonpath(roots)) if roots else folder


def _portable(rows: Original, place: int, shelf: "_Shelf") -> dict[str, Any]:
    row, root = rows.row(place), rows.root(place)
    for column in rows.media:
        row = _changed(row, _keys(row, column), lambda cell: shelf.named(cell, root))
    return {key: shelf.plain(value) for key, value in row.items()}


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Where media are put that have no file, and how a written row names all of them."""

    folder: Path
    root: Path

    def named(self, cell: Any, root: Path) -> Any:
        """A cell of media whose paths start from `root`; a path that need not change stays as it stands."""
        if isinstance(cell, list):
            return [self.named(item, root) for item in cast(list[Any], cell)]
        data, path = _media(cell)
        if data is not None:
            return self.put(data)
        if not path or root == self.root:
            return cell
        found = (root / path).resolve()
        if found.is_relative_to(self.root):
            return found.relative_to(self.root).as_posix()
        return self.put(found.read_bytes())

    def plain(self, value: Any) -> Any:
        """The same for JSON."""
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, list):
            return [self.plain(item) for item in cast(list[Any], value)]
        data, _ = _media(value)
        if data is not None:
            return self.put(data)
        if isinstance(value, Mapping):
            return {str(key): self.plain(item) for key, item in cast(Mapping[Any, Any], value).items()}
        return str(value)

    def put(self, data: bytes) -> str:
        """Under its hash, because many questions share a picture."""
        suffix = _SUFFIXES[image_format(data[:16]) or demuxer(data[:16])]
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
        if not path.exists() or path.stat().st_size != len(data):
            self.folder.mkdir(exist_ok=True)
            path.write_bytes(data)
        return path.relative_to(self.folder.parent).as_posix()


def _media(item: Any) -> tuple[bytes | None, str | None]:
    """The bytes of an encoded file, or its path: bare, or as `datasets` gives them."""
    if isinstance(item, Mapping):
        entry = cast(Mapping[str, Any], item)
        item = entry.get("path") if entry.get("bytes") is None else entry["bytes"]
    return (item, None) if isinstance(item, bytes) else (None, item if isinstance(item, str) else None)


def _is_embedded(cell: Any) -> bool:
    items = cast(list[Any], cell) if isinstance(cell, list) else None
    return _media(cell)[0] is not None if items is None else any(map(_is_embedded, items))


def _keys(row: Row, column: str) -> Sequence[str]:
    return [column] if column in row else column.split(".")


def _cell(row: Row, column: str) -> Any:
    value: Any = row
    for key in _keys(row, column):
        value = cast(Mapping[str, Any], value).get(key) if isinstance(value, Mapping) else None
    return value


def _changed(row: Row, keys: Sequence[str], change: Callable[[Any], Any]) -> Row:
    """With another value where the keys lead, if they lead anywhere."""
    first, *rest = keys
    if first not in row:
        return row
    inner = row[first]
    if not rest:
        return {**row, first: change(inner)}
    return {**row, first: _changed(inner, rest, change)} if isinstance(inner, Mapping) else row
