"""Rows of data sets: from a file, a folder, or the hub, with what an error needs to name them.

JSON Lines, JSON and CSV are read as they stand: `datasets` would guess types there and turn an answer such as
`2024-05-01` into a time stamp. Parquet and the hub go through `datasets`, which keeps them on disk; media stay
undecoded. Data sets that bring code of their own are not run.
"""

import csv
import dataclasses
import json
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import huggingface_hub.constants

from adapters.errors import UserError

if TYPE_CHECKING:
    # It takes two seconds and brings torch, so it is imported where Parquet or the hub is read, and by nobody else.
    import datasets

Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's path that say its split."""
_LOOK = 4
"""Rows that show what columns hold: a row or two may be without a picture, and clips in rows are megabytes each."""


@dataclass(frozen=True, slots=True)
class Records:
    """Rows of one file, or of what `datasets` presents as one."""

    label: str
    """The name of the rows in errors."""
    rows: Sequence[Row]
    columns: tuple[str, ...]
    folder: Path
    """Where paths in the rows start from."""
    first: Sequence[Row] = ()
    """The first rows with all their columns, where `rows` have those that were asked for."""


def read_records(
    name: str,
    *,
    split: str = "train",
    subset: str | None = None,
    files: str | None = None,
    columns: Collection[str] | None = None,
    cache: Path | None = None,
) -> list[Records]:
    """One split of a file, a folder or a data set of the hub; only `columns` of it, where that saves work.

    A file is one split, `train`. In a folder the split is the word in a file's path (`train`, `validation`, `test`
    and their short forms; none means `train`), `files` is a pattern that picks files instead, and a `metadata.*` file
    stands for the folder that holds it and the media beside it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        splits = {"train": [path]}
    elif path.is_dir():
        splits = _folder_splits(path, subset, files)
    elif name.startswith(("/", ".", "~")) or path.suffix in SUFFIXES:  # no name on the hub looks like this
        raise UserError(f"{name}: no such file or folder")
    else:
        return _from_hub(name, split, subset, files, columns, cache)
    if split not in splits:
        raise UserError(f"{name}: no split {split!r}; it has {_names(splits)}")
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}
    records = [readers[path.suffix](path) for path in splits[split] if path.suffix in readers]
    shards: dict[Path, list[Path]] = {}  # the Parquet files of a folder are one table: `datasets` caches it as one
    for path in splits[split]:
        if path.suffix == ".parquet":
            shards.setdefault(path.parent, []).append(path)
    return records + [_parquet(folder, paths, columns, cache) for folder, paths in shards.items()]


# ---- files ----


def _folder_splits(folder: Path, subset: str | None, pattern: str | None) -> dict[str, list[Path]]:
    root = folder / subset if subset else folder
    if not root.is_dir():
        raise UserError(f"{folder}: no subset {subset!r}: there is no such folder in it")
    paths = sorted(path for path in root.glob(pattern or "**/*") if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        wanted = f"matches {pattern!r}" if pattern else f"ends in {', '.join(SUFFIXES)}"
        raise UserError(f"{root}: no file in it {wanted}")
    if pattern:
        return {"train": paths}
    metadata = [path for path in paths if path.stem == "metadata"]
    splits: dict[str, list[Path]] = {}
    for path in metadata or paths:
        words = set(re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower()))
        split = next((split for split, names in SPLITS.items() if words.intersection(names)), "train")
        splits.setdefault(split, []).append(path)
    return splits


class _JsonLines(Sequence[Row]):
    """The objects of a JSON Lines file, parsed when asked for. Blank lines do not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, None] = {}
        self._starts = array("Q")  # 8 bytes a row: a file of millions stays on disk
        with path.open("rb") as file:
            start = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # a byte order mark, which is no JSON
            file.seek(start)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self.keys.update(dict.fromkeys(_json_object(line, f"{path}: line {number}")))
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return _json_object(file.readline(), f"{self.path}: row {index + 1}")

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for index, start in enumerate(self._starts):
                file.seek(start)
                yield _json_object(file.readline(), f"{self.path}: row {index + 1}")


def _json_object(line: bytes, label: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        raise UserError(f"{label} is not JSON; the file must hold one object on each line") from None
    if not isinstance(value, dict):
        raise UserError(f"{label} is not a JSON object; write each row as {{...}}")
    return cast(dict[str, Any], value)


def _json_lines(path: Path) -> Records:
    lines = _JsonLines(path)
    return Records(str(path), lines, tuple(lines.keys), path.parent.resolve(), lines[:_LOOK])


def _json(path: Path) -> Records:
    with path.open("rb") as file:
        # Some write JSON Lines into a file that ends in .json: a list begins with a bracket, a row never.
        if file.read(4).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            return _json_lines(path)
    try:
        rows = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path}: not JSON; the file must hold a list of objects") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is not a JSON object; write each row as {{...}}")
    return _in_memory(path, rows)


def _csv(path: Path) -> Records:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))  # extra values end under the key None
    except (csv.Error, UnicodeDecodeError):
        raise UserError(f"{path}: not CSV in UTF-8; the first line must name the columns") from None
    if any(None in row for row in rows):
        number = next(number for number, row in enumerate(rows, start=1) if None in row)
        raise UserError(f"{path}: row {number} has more values than the first line has names")
    return _in_memory(path, rows)


def _in_memory(path: Path, rows: Sequence[Row]) -> Records:
    keys = tuple(dict.fromkeys(key for row in rows for key in row))
    return Records(str(path), rows, keys, path.parent.resolve(), rows[:_LOOK])


# ---- through `datasets` ----


def _parquet(folder: Path, files: list[Path], columns: Collection[str] | None, cache: Path | None) -> Records:
    import datasets

    label = str(files[0] if len(files) == 1 else folder / "*.parquet")
    _silence()
    try:
        loaded = datasets.load_dataset(
            "parquet", data_files=[str(file) for file in files], split="train", cache_dir=cache and str(cache)
        )
    except Exception:  # the errors of pyarrow and of `datasets` share no class
        raise UserError(f"{label}: not Parquet, or files of different columns") from None
    return _table(label, loaded, columns, folder)


def _from_hub(
    name: str, split: str, subset: str | None, files: str | None, columns: Collection[str] | None, cache: Path | None
) -> list[Records]:
    import datasets

    _silence()
    try:
        loaded = datasets.load_dataset(name, subset, data_files=files, cache_dir=cache and str(cache))
    except ConnectionError:
        message = "no such file or folder here, and the hub cannot be reached; give a path, such as ./data/train.jsonl"
        raise UserError(f"{name}: {message}") from None
    except FileNotFoundError:
        message = "no such file or folder here, and no such data set on the hub (or one that needs a login)"
        raise UserError(f"{name}: {message}; give a path, such as ./data/train.jsonl") from None
    except ValueError as error:  # an unknown or missing subset: the library's first line lists those there are
        raise UserError(f"{name}: {str(error).strip().splitlines()[0]}") from None
    except Exception as error:
        raise UserError(f"{name}: the hub's data set cannot be read ({type(error).__name__}); give a path") from None
    tables = cast(Mapping[str, datasets.Dataset], loaded)
    if split not in tables:
        raise UserError(f"{name}: no split {split!r}; it has {_names(tables)}")
    folder = Path(huggingface_hub.constants.HF_HUB_CACHE)
    return [_table(f"{name} ({split})", tables[split], columns, folder)]


def _table(label: str, table: "datasets.Dataset", columns: Collection[str] | None, folder: Path) -> Records:
    import datasets

    # The same data under other features: they alone say whether a cell is decoded when it is read.
    names = tuple(table.column_names)
    features = datasets.Features({name: _undecoded(feature) for name, feature in table.features.items()})
    plain = datasets.Dataset(table.data, info=datasets.DatasetInfo(features=features), fingerprint="undecoded")
    first = [plain[index] for index in range(min(len(plain), _LOOK))]
    if columns is not None:
        plain = plain.select_columns([name for name in names if name in columns])
    return Records(label, cast(Sequence[Row], plain), names, folder.resolve(), first)


def _undecoded(feature: Any) -> Any:
    """The same feature with media left as {"bytes", "path"}."""
    import datasets

    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in cast(dict[str, Any], feature).items()}
    # Decoding would open every image of each row that is read, and lose the bytes as they came.
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(cast(Any, feature), feature=_undecoded(feature.feature))
    if hasattr(feature, "decode") and not isinstance(feature, datasets.Json):
        return dataclasses.replace(feature, decode=False)
    return feature


def _silence() -> None:
    import datasets

    # Its bars and warnings would stand between the lines of a command; errors are raised, and told in one line.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def _names(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
