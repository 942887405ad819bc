"""Rows from files, folders and the hub's cache, and what is said about files that are not what they should be."""

import json
import shutil
from pathlib import Path

import datasets
import datasets.config
import huggingface_hub.constants
import pytest
from datasets import Dataset, Features, Image, List, Value

from adapters.errors import UserError
from trainer.data.records import read_records

ROWS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict], features: Features | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


@pytest.fixture(autouse=True)
def _quiet_datasets():
    datasets.disable_progress_bars()


@pytest.fixture
def rows_of(tmp_path):
    def read(path, **options) -> list[dict]:
        tables = read_records(str(path), cache=tmp_path / "cache", **options)
        return [dict(row) for records in tables for row in records.rows]

    return read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", '{"prompt": "1+1?", "answer": "2"}\n\n{"prompt": "2+2?", "answer": "4"}'),
        ("rows.jsonl", '\ufeff{"prompt": "1+1?", "answer": "2"}\r\n{"prompt": "2+2?", "answer": "4"}\r\n'),
        ("rows.json", '\n [{"prompt": "1+1?", "answer": "2"},\n {"prompt": "2+2?", "answer": "4"}]'),
        ("rows.json", '{"prompt": "1+1?", "answer": "2"}\n{"prompt": "2+2?", "answer": "4"}\n'),
        ("rows.csv", '\ufeffprompt,answer\n1+1?,2\n2+2?,"4"\n'),
    ],
)
def test_text_files_are_read(tmp_path, rows_of, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert rows_of(tmp_path / name) == ROWS


def test_parquet_is_read_and_rows_can_be_asked_for_one_by_one(tmp_path, rows_of):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    assert rows_of(path) == ROWS
    (records,) = read_records(str(path), cache=tmp_path / "cache")
    assert dict(records.rows[1]) == ROWS[1]
    assert records.columns == ("prompt", "answer")


def test_lines_keep_the_types_that_they_write(tmp_path, rows_of):
    rows = [{"answer": "2024-05-01"}, {"answer": 7, "extra": [1, "two"]}, {"answer": {"x": None}}]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    assert rows_of(path) == rows
    assert read_records(str(path))[0].columns == ("answer", "extra")
    assert dict(read_records(str(path))[0].rows[-1]) == rows[-1]


def test_media_stay_encoded(tmp_path, rows_of):
    features = Features({"one": Image(), "many": List(Image()), "deep": {"image": Image()}, "text": Value("string")})
    entry = {"bytes": b"not decoded", "path": None}
    row = {"one": entry, "many": [entry], "deep": {"image": entry}, "text": "t"}
    path = write_parquet(tmp_path / "rows.parquet", [row], features)
    assert rows_of(path) == [row]
    assert rows_of(path, columns={"deep", "text"}) == [{"deep": {"image": entry}, "text": "t"}]


def test_a_changed_file_is_read_again_whatever_was_cached(tmp_path, rows_of):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    assert len(rows_of(path)) == 2
    write_parquet(path, ROWS[:1])
    assert rows_of(path) == ROWS[:1]


def test_splits_of_a_folder_go_by_words_in_its_file_names(tmp_path, rows_of):
    write_lines(tmp_path / "train.jsonl", ROWS)
    write_lines(tmp_path / "dev" / "rows.jsonl", ROWS[:1])
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", ROWS[:1])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", ROWS[1:])
    (tmp_path / "README.md").write_text("# not rows")
    assert rows_of(tmp_path) == ROWS
    assert rows_of(tmp_path, split="validation") == ROWS[:1]
    assert rows_of(tmp_path, split="test") == ROWS
    assert rows_of(tmp_path, files="dev/*.jsonl") == ROWS[:1]
    with pytest.raises(UserError, match=r"no split 'exam'; it has 'test', 'train', 'validation'$"):
        rows_of(tmp_path, split="exam")


def test_a_folder_with_metadata_is_read_by_it_alone(tmp_path, rows_of):
    write_lines(tmp_path / "train" / "metadata.jsonl", ROWS)
    write_lines(tmp_path / "train" / "notes.jsonl", [{"note": "not a row"}])
    assert rows_of(tmp_path) == ROWS
    (records,) = read_records(str(tmp_path))
    assert records.folder == (tmp_path / "train").resolve()


def test_a_subset_is_a_folder(tmp_path, rows_of):
    write_lines(tmp_path / "easy" / "train.jsonl", ROWS)
    write_lines(tmp_path / "hard" / "train.jsonl", ROWS[:1])
    assert rows_of(tmp_path, subset="hard") == ROWS[:1]
    with pytest.raises(UserError, match="no subset 'harder'"):
        rows_of(tmp_path, subset="harder")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"a": 1}\n{"a": \n', "rows.jsonl: line 2 is not JSON; the file must hold one object on each"),
        ("rows.jsonl", '{"a": 1}\n[1]\n', "rows.jsonl: line 2 is not a JSON object; write each row as {...}"),
        ("rows.jsonl", "prompt,answer\n1,2\n", "rows.jsonl: line 1 is not JSON"),
        ("rows.jsonl", b"\xff\xfe\x00{", "rows.jsonl: line 1 is not JSON"),
        ("rows.json", '[{"a": 1}', "rows.json: not JSON; the file must hold a list of objects"),
        ("rows.json", '[{"a": 1}, 2]', "rows.json: row 2 is not a JSON object"),
        ("rows.csv", "a,b\n1,2\n1,2,3\n", "rows.csv: row 2 has more values than the first line has names"),
        ("rows.csv", b"a,b\n\xff,2\n", "rows.csv: not CSV in UTF-8"),
        ("rows.parquet", "PAR1 it is not", "rows.parquet: not Parquet, or files of different columns"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line(tmp_path, rows_of, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        rows_of(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said_so(tmp_path, rows_of):
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file or folder$"):
        rows_of("missing.jsonl")
    with pytest.raises(UserError, match="no such file or folder"):
        rows_of(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no file in it ends in \.jsonl, \.json, \.csv, \.parquet$"):
        rows_of(tmp_path)
    with pytest.raises(UserError, match=r"no file in it matches '\*\.csv'"):
        rows_of(tmp_path, files="*.csv")


@pytest.fixture
def _offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_offline")
def test_a_name_that_is_neither_here_nor_reachable_is_said_so(rows_of):
    with pytest.raises(UserError) as caught:
        rows_of("someone/something")
    assert str(caught.value) == (
        "someone/something: no such file or folder here, and the hub cannot be reached; "
        "give a path, such as ./data/train.jsonl"
    )


@pytest.mark.usefixtures("_offline")
def test_a_data_set_of_the_hub_that_is_cached_needs_no_network(tmp_path, rows_of):
    path = write_parquet(tmp_path / "rows.parquet", ROWS)
    cache = tmp_path / "cache"
    rows_of(path)  # leaves the rows in the form of the cache
    (built,) = cache.glob("parquet/default-*/0.0.0/*/dataset_info.json")
    cached = cache / "someone___something" / "default" / "0.0.0" / "0123456789abcdef"
    shutil.copytree(built.parent, cached)
    (cached / "parquet-train.arrow").rename(cached / "something-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text()) | {"dataset_name": "something"}
    info["splits"]["train"]["dataset_name"] = "something"
    (cached / "dataset_info.json").write_text(json.dumps(info))
    assert rows_of("someone/something") == ROWS
    with pytest.raises(UserError, match=r"^someone/something: no split 'test'; it has 'train'$"):
        rows_of("someone/something", split="test")
