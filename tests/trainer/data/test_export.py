"""Rows written to a file: as they were, with media that the file's reader finds, and equal prompts again."""

import datetime
import json
from pathlib import Path

import datasets
import datasets.config
import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, Video

from adapters.errors import UserError
from service.media import Limits, encode_image, encode_video
from trainer.data.export import original_rows, settings, write
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.recipe import CapabilityConfig, Data, DatasetData, MiniatureData, Recipe, RewardConfig
from trainer.recipe.file import load

RED = encode_image(np.full((8, 12, 3), (255, 0, 0), np.uint8))
BLUE = encode_image(np.full((8, 12, 3), (0, 0, 255), np.uint8))
CLIP = encode_video(np.arange(4 * 8 * 12 * 3, dtype=np.uint8).reshape(4, 8, 12, 3), 2.0)
QUESTION = {"prompt": "q", "answer": "a"}
TEXTS = {"prompt": Value("string"), "answer": Value("string")}


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder with media in it."""
    folder = tmp_path / "set"
    for name, data in {"red.png": RED, "more/blue.png": BLUE, "clip.mkv": CLIP}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict], features: Features | None = None) -> Path:
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


def data_of(name: Path, **changes) -> DatasetData:
    return DatasetData.model_validate({"type": "dataset", "name": str(name)} | changes)


def prompts_of(data: Data) -> Prompts:
    return open_prompts("image", data, seed=3, limits=Limits())


def ids(prompts: Prompts) -> list[str]:
    return [prompts[index].id for index in range(len(prompts))]


def exported(data: Data, out: Path, indices: list[int] | None = None) -> list[dict]:
    """The rows of the file, after a recipe that was told to has read equal prompts from it."""
    prompts = prompts_of(data)
    indices = list(range(len(prompts))) if indices is None else indices
    root = write(out, original_rows(prompts, data), {index: {"pass_rate": 0.5} for index in indices})
    capability = CapabilityConfig(data=data, reward=RewardConfig(kind="exact"))
    recipe = Recipe.model_validate(
        {"name": "r", "base": {"name": "miniature"}, "method": {"kind": "rlvr"}, "capabilities": {"image": capability}}
    )
    path = out.with_suffix(".json")
    path.write_text(recipe.model_dump_json())
    words = [word.removeprefix("--set=") for word in settings("image", capability, prompts, out, root)]
    again = prompts_of(load(path, words).capabilities["image"].data)
    assert ids(again) == [ids(prompts)[index] for index in indices]
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_keep_every_column_their_order_and_their_values(tmp_path, source) -> None:
    rows = [
        QUESTION | {"id": number, "note": "é \ud800", "deep": {"list": [1, 2.5, None, True]}, "big": 10**30}
        for number in range(4)
    ]
    written = exported(data_of(lines(source / "rows.jsonl", *rows)), tmp_path / "kept.jsonl", [0, 2, 3])
    assert written == [rows[index] | {"pass_rate": 0.5} for index in (0, 2, 3)]
    assert [list(row) for row in written] == [[*rows[0], "pass_rate"]] * 3
    assert "é \\ud800" in (tmp_path / "kept.jsonl").read_text()


def test_a_rate_of_before_is_replaced(tmp_path, source) -> None:
    (row,) = exported(data_of(lines(source / "rows.jsonl", QUESTION | {"pass_rate": 0.1})), tmp_path / "kept.jsonl")
    assert row == QUESTION | {"pass_rate": 0.5}


def test_cells_of_csv_stay_texts(tmp_path, source) -> None:
    (source / "rows.csv").write_text("prompt,answer,when\n1+1?,2,2024-05-01\n")
    (row,) = exported(data_of(source / "rows.csv"), tmp_path / "kept.jsonl")
    assert row == {"prompt": "1+1?", "answer": "2", "when": "2024-05-01", "pass_rate": 0.5}


def test_another_split_is_read_as_the_files_only_one(tmp_path, source) -> None:
    lines(source / "test.jsonl", QUESTION)
    (row,) = exported(data_of(source, split="test"), tmp_path / "kept.jsonl")
    assert row == QUESTION | {"pass_rate": 0.5}


@pytest.mark.parametrize("cell", ["red.png", ["red.png", "more/blue.png"], {"path": "red.png"}, None, []])
def test_paths_stay_as_they_are(tmp_path, source, cell) -> None:
    rows = [QUESTION | {"image": cell}, QUESTION | {"image": "more/blue.png"}]
    data = data_of(lines(source / "rows.jsonl", *rows), columns={"images": "image"})
    for out in (tmp_path / "kept.jsonl", source / "kept.jsonl"):
        assert exported(data, out) == [row | {"pass_rate": 0.5} for row in rows]
        assert not out.with_suffix(".media").exists()


def test_paths_under_a_media_root_stay_as_they_are(tmp_path, source) -> None:
    row = QUESTION | {"video": "clip.mkv"}
    data = data_of(lines(tmp_path / "rows.jsonl", row), columns={"videos": "video"}, media_root=str(source))
    assert exported(data, source / "more/kept.jsonl") == [row | {"pass_rate": 0.5}]


def test_paths_of_several_folders_start_from_the_one_above(tmp_path) -> None:
    for name, data in {"a": RED, "b": BLUE}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "picture.png").write_bytes(data)
        lines(tmp_path / "set" / name / "metadata.jsonl", QUESTION | {"image": "picture.png"})
    written = exported(data_of(tmp_path / "set", columns={"images": "image"}), tmp_path / "kept.jsonl")
    assert [row["image"] for row in written] == ["a/picture.png", "b/picture.png"]


def test_pictures_in_rows_become_files_beside_the_file(tmp_path, source) -> None:
    features = Features(TEXTS | {"image": List(Image()), "extra": Image(), "raw": Value("binary")})
    rows = [
        QUESTION | {"image": [{"bytes": RED, "path": "a.jpeg"}, {"bytes": BLUE, "path": None}], "extra": None,
                    "raw": b"?"},
        QUESTION | {"image": [{"bytes": RED, "path": None}], "extra": {"bytes": BLUE, "path": None}, "raw": None},
    ]  # fmt: skip
    data = data_of(parquet(source / "rows.parquet", rows, features), columns={"images": "image"})
    first, second = exported(data, tmp_path / "kept.jsonl")
    red, blue = first["image"]
    assert ((tmp_path / red).read_bytes(), (tmp_path / blue).read_bytes()) == (RED, BLUE)
    assert red.startswith("kept.media/")
    assert red.endswith(".png")
    assert (second["image"], second["extra"]) == ([red], blue)
    assert (tmp_path / first["raw"]).read_bytes() == b"?"
    assert len(list((tmp_path / "kept.media").iterdir())) == 3


def test_videos_and_frames_in_rows_become_files(tmp_path, source) -> None:
    features = Features(TEXTS | {"video": Video()})
    name = parquet(source / "rows.parquet", [QUESTION | {"video": {"bytes": CLIP, "path": None}}], features)
    (row,) = exported(data_of(name, columns={"videos": "video"}), tmp_path / "kept.jsonl")
    assert row["video"].endswith(".mkv")
    frames = Features(TEXTS | {"video": List(List(Value("binary")))})
    name = parquet(source / "frames.parquet", [QUESTION | {"video": [[RED, BLUE], [BLUE, RED, RED]]}], frames)
    (row,) = exported(data_of(name, columns={"videos": "video"}), tmp_path / "frames.jsonl")
    assert [len(video) for video in row["video"]] == [2, 3]


def test_media_in_a_column_of_objects_are_found_there(tmp_path, source) -> None:
    features = Features(TEXTS | {"media": {"picture": Image(), "name": Value("string")}})
    rows = [QUESTION | {"media": {"picture": {"bytes": RED, "path": None}, "name": "red"}}]
    data = data_of(parquet(source / "rows.parquet", rows, features), columns={"images": "media.picture"})
    (row,) = exported(data, tmp_path / "kept.jsonl")
    assert row["media"]["name"] == "red"
    assert (tmp_path / row["media"]["picture"]).read_bytes() == RED


@pytest.mark.parametrize("with_root", [False, True])
def test_where_some_pictures_lie_in_rows_all_paths_start_from_the_file(tmp_path, source, with_root) -> None:
    features = Features(TEXTS | {"image": {"bytes": Value("binary"), "path": Value("string")}})
    cells = [{"bytes": None, "path": "red.png"}, {"bytes": BLUE, "path": None}, {"bytes": None, "path": "red.png"}]
    name = parquet(source / "rows.parquet", [QUESTION | {"image": cell} for cell in cells], features)
    root = {"media_root": str(source)} if with_root else {}
    data = data_of(name, columns={"images": "image"}, **root)
    (tmp_path / "elsewhere").mkdir()
    for out, first in (
        ("elsewhere/kept.jsonl", "kept.media/"),
        ("kept.jsonl", "set/red.png"),
        ("set/kept.jsonl", {"bytes": None, "path": "red.png"}),
    ):
        images = [row["image"] for row in exported(data, tmp_path / out)]
        assert images[0] == images[2]
        assert images[0] == first or images[0].startswith(first)
        assert images[1].startswith("kept.media/")


def test_what_json_has_no_form_for_is_its_text(tmp_path, source) -> None:
    name = parquet(source / "rows.parquet", [QUESTION | {"when": datetime.date(2024, 5, 1)}])
    (row,) = exported(data_of(name), tmp_path / "kept.jsonl")
    assert row["when"] == "2024-05-01"


@pytest.mark.parametrize("name", ["text", "image", "video"])
def test_questions_of_the_miniature_become_rows_of_equal_prompts(tmp_path, name: str) -> None:
    data = MiniatureData(type="miniature", name=name, size=6)
    written = exported(data, tmp_path / "kept.jsonl", [1, 4])
    assert [set(row) - {"images", "videos"} for row in written] == [{"prompt", "answer", "pass_rate"}] * 2


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, source) -> None:
    (tmp_path / "kept.media").write_text("in the way")
    features = Features(TEXTS | {"image": Image()})
    name = parquet(source / "rows.parquet", [QUESTION | {"image": {"bytes": RED, "path": None}}], features)
    data = data_of(name, columns={"images": "image"})
    prompts = prompts_of(data)
    with pytest.raises(UserError, match=r"kept\.media.*: cannot be written: "):
        write(tmp_path / "kept.jsonl", original_rows(prompts, data), {0: {"pass_rate": 0.5}})
    assert not list(tmp_path.glob("*kept.jsonl*"))
