"""Data sets as prompts: columns, media from everywhere, refusals with their place, fingerprints."""

import io
import json
import shutil
import struct
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, Video

from adapters.errors import UserError
from service.media import Limits, Sampling, decode_image, decode_video, encode_image, encode_video
from trainer.data.datasets import load
from trainer.data.prompts import make_prompt

RED = encode_image(np.full((8, 12, 3), (255, 0, 0), np.uint8))
BLUE = encode_image(np.full((8, 12, 3), (0, 0, 255), np.uint8))
CLIP_THWC = np.arange(4 * 8 * 12 * 3, dtype=np.uint8).reshape(4, 8, 12, 3)
CLIP = encode_video(CLIP_THWC, 2.0)
IMAGES = {"images": "image"}
TEXT = {"prompt": Value("string"), "answer": Value("string")}


def jpeg_cut_short() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    decode_image(encode_image(noise), Limits()).save(file, "JPEG")
    return file.getvalue()[:-500]


def ten_hours() -> bytes:
    offset = CLIP.index(b"\x44\x89\x88") + 3  # behind the mark and the length of Matroska's duration
    return CLIP[:offset] + struct.pack(">d", 36_000_000.0) + CLIP[offset + 8 :]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with media in it, and a secret outside it."""
    inside = tmp_path / "set"
    inside.mkdir()
    for name, data in {"red.png": RED, "blue.png": BLUE, "clip.mkv": CLIP}.items():
        (inside / name).write_bytes(data)
    (tmp_path / "secret.png").write_bytes(RED)
    return inside


@pytest.fixture
def rows_file(folder):
    def write(*rows: dict) -> str:
        return write_lines(folder / "rows.jsonl", [{"image": None, "video": None} | row for row in rows])

    return write


@pytest.fixture
def parquet_file(folder):
    datasets.disable_progress_bars()

    def write(rows: list[dict], features: Features | None = None) -> str:
        Dataset.from_list(rows, features=features).to_parquet(str(folder / "rows.parquet"))
        return str(folder / "rows.parquet")

    return write


@pytest.fixture
def read(tmp_path):
    def read(name: str, **options):
        given = {"capability": "image", "columns": {"images": "image", "videos": "video"}, "cache": tmp_path / "cache"}
        return load(name, **given | options)

    return read


# ---- what a row becomes ----


def test_a_row_becomes_the_prompt_that_its_cells_say(rows_file, read):
    name = rows_file({"q": "what is in <image>?", "meta": {"truth": 3}, "pic": "red.png"})
    columns = {"prompt": "q", "answer": "meta.truth", "images": "pic"}
    (prompt,) = read(name, columns=columns, system="look", suffix="Answer in a word.")
    expected = make_prompt("image", "what is in <image>?", 3, [RED], system="look", suffix="Answer in a word.")
    assert prompt == expected


def test_columns_that_are_not_mapped_are_not_read(rows_file, read):
    name = rows_file({"prompt": "q", "answer": "a", "image": "missing.png"})
    (prompt,) = read(name, columns={"images": None})
    assert prompt == make_prompt("image", "q", "a")


def test_chat_messages_keep_their_form(rows_file, read):
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]
    (prompt,) = read(rows_file({"prompt": messages, "answer": "a", "image": "red.png"}))
    assert prompt == make_prompt("image", messages, "a", [RED])


def test_images_come_as_paths_bytes_features_and_lists(rows_file, parquet_file, read):
    question = {"prompt": "q", "answer": "a"}
    for cell in ("red.png", {"path": "red.png", "bytes": None}, ["red.png"], [{"path": "red.png"}]):
        assert read(rows_file(question | {"image": cell}))[0].images == (RED,)
    for cell in ([], None, ""):
        assert read(rows_file(question | {"image": cell}))[0].images == ()
    assert read(rows_file(question | {"image": ["red.png", "blue.png"]}))[0].images == (RED, BLUE)
    text = {"prompt": Value("string"), "answer": Value("string")}
    for feature, cell in (
        (Value("binary"), RED),
        (Image(), {"bytes": RED, "path": None}),
        (List(Image()), [{"bytes": RED, "path": "name.png"}]),
    ):
        name = parquet_file([question | {"image": cell}], Features(text | {"image": feature}))
        assert read(name, columns=IMAGES)[0].images == (RED,)


def test_videos_come_as_files_bytes_and_lists(rows_file, parquet_file, read):
    question = {"prompt": "q", "answer": "a"}
    assert read(rows_file(question | {"video": "clip.mkv"}))[0].videos == (CLIP,)
    assert read(rows_file(question | {"video": ["clip.mkv", "clip.mkv"]}))[0].videos == (CLIP, CLIP)
    features = Features({"prompt": Value("string"), "answer": Value("string"), "video": Video()})
    name = parquet_file([question | {"video": {"bytes": CLIP, "path": None}}], features)
    assert read(name, columns={"videos": "video"})[0].videos == (CLIP,)


def test_frames_become_a_video_that_gives_them_back(rows_file, read):
    question = {"prompt": "q", "answer": "a"}
    (prompt,) = read(rows_file(question | {"video": ["red.png", "blue.png", "red.png"]}), frames_fps=4.0)
    video = decode_video(prompt.videos[0], Limits(), Sampling(fps=4.0))
    assert (video.fps, video.indices) == (4.0, (0, 1, 2))
    expected = [np.asarray(decode_image(data, Limits())) for data in (RED, BLUE, RED)]
    assert np.array_equal(video.frames_THWC, np.stack(expected))
    (prompt,) = read(rows_file(question | {"video": [["red.png"], ["blue.png"]]}))
    assert len(prompt.videos) == 2


def test_a_folder_of_images_with_their_metadata_is_a_data_set(folder, read):
    rows = [{"file_name": "red.png", "prompt": "q", "answer": "red"}]
    write_lines(folder / "metadata.jsonl", rows)
    (prompt,) = read(str(folder), columns={"images": "file_name"})
    assert prompt == make_prompt("image", "q", "red", [RED])


def test_limit_takes_the_first_usable_rows(rows_file, read):
    rows = [{"prompt": f"{number}?", "answer": answer} for number, answer in enumerate(["", "a", "b", "c"])]
    prompts = read(rows_file(*rows), columns={}, limit=2, on_bad_row="drop")
    assert [prompt.answer for prompt in prompts] == ["a", "b"]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"image": "../secret.png"}, "../secret.png leads out of"),
        ({"image": "/etc/passwd"}, "/etc/passwd leads out of"),
        ({"image": "link.png"}, "link.png leads out of"),
        ({"video": "up/secret.png"}, "up/secret.png leads out of"),
        ({"image": "missing.png"}, "missing.png: no such file in"),
        ({"image": "https://example.org/red.png"}, "https://example.org/red.png: no such file in"),
        ({"image": "zero\0byte"}, "not a path"),
        ({"image": 7}, "a int is neither bytes nor a path"),
        ({"image": "rows.jsonl"}, "not a PNG, JPEG or WEBP image: convert it"),
        ({"video": "rows.jsonl"}, "not an MP4, MOV, Matroska or WebM video: convert it"),
        ({"video": "long.webm"}, "the video lasts 36000 s, 600 s are allowed: cut it"),
        ({"video": ["red.png", "small.png"]}, "the frames of a video are not of one size"),
        ({"video": [[]]}, "a video without frames"),
    ],
)
def test_unusable_media_are_one_line_with_file_row_and_column(folder, rows_file, read, cells, message):
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "up").symlink_to(folder.parent)
    (folder / "long.webm").write_bytes(ten_hours())
    (folder / "small.png").write_bytes(encode_image(np.zeros((4, 4, 3), np.uint8)))
    good = {"prompt": "q", "answer": "a"}
    name = rows_file(good, good | cells)
    with pytest.raises(UserError) as caught:
        read(name)
    (column,) = cells
    assert str(caught.value).startswith(f"{name}: row 2: column '{column}': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_media_root_moves_where_paths_start_and_end(folder, rows_file, read):
    row = {"prompt": "q", "answer": "a", "image": str(folder.parent / "secret.png")}
    assert read(rows_file(row), media_root=folder.parent)[0].images == (RED,)
    assert read(rows_file(row | {"image": "set/red.png"}), media_root=str(folder.parent))[0].images == (RED,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "answer": " "}, "column 'answer': the answer is empty"),
        ({"prompt": None, "answer": "a"}, "column 'prompt': neither a text nor a list of messages"),
        ({"prompt": "<image>?", "answer": "a"}, "column 'prompt': 1 <image> mark for 0 images"),
        ({"prompt": "<|im_start|>?", "answer": "a"}, "column 'prompt': the text holds <|im_start|>"),
    ],
)
def test_a_row_without_question_or_answer_is_refused_with_its_number(rows_file, read, row, message):
    name = rows_file({"prompt": "q", "answer": "a"}, row)
    with pytest.raises(UserError) as caught:
        read(name, columns={})
    assert str(caught.value).startswith(f"{name}: row 2: {message}")


def test_bad_rows_are_dropped_and_counted_when_asked_for(folder, rows_file, read):
    (folder / "cut.jpg").write_bytes(jpeg_cut_short())
    good = {"prompt": "q", "answer": "a"}
    name = rows_file(good, good | {"image": "missing.png"}, good | {"answer": ""}, good | {"image": "cut.jpg"})
    prompts = read(name, on_bad_row="drop", check="pixels")
    assert len(prompts) == 1
    assert prompts.dropped == Counter({"media-missing": 1, "answer": 1, "damaged": 1})
    name = rows_file(good | {"answer": ""}, good | {"answer": ""}, good | {"prompt": ""})
    with pytest.raises(UserError, match=r"rows.jsonl: no usable row; dropped: 2 answer, 1 prompt$"):
        read(name, on_bad_row="drop")


def test_damage_that_a_header_does_not_show_is_found_by_decoding(folder, rows_file, read):
    (folder / "cut.jpg").write_bytes(jpeg_cut_short())
    frames = CLIP.index(b"\x1f\x43\xb6\x75") + 40
    (folder / "spoilt.mkv").write_bytes(CLIP[:frames] + bytes(len(CLIP) - frames))
    for cells in ({"image": "cut.jpg"}, {"video": "spoilt.mkv"}):
        name = rows_file({"prompt": "q", "answer": "a"} | cells)
        assert len(read(name)) == 1
        with pytest.raises(UserError, match=f"row 1: column '{next(iter(cells))}': the .* is damaged"):
            read(name, check="pixels")


def test_a_missing_column_names_those_there_are_and_the_key_to_set(folder, read):
    name = write_lines(folder / "rows.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError) as caught:
        read(name, columns={})
    expected = "no column 'prompt'; set capabilities.image.data.columns.prompt to one of 'question', 'answer'"
    assert str(caught.value) == f"{name}: {expected}"
    with pytest.raises(UserError, match="unknown key 'picture'; the keys are 'prompt', 'answer', 'images', 'videos'"):
        read(name, columns={"picture": "pic"})


def test_an_empty_file_and_an_unknown_split_are_refused(rows_file, read):
    with pytest.raises(UserError, match=r"rows.jsonl: no usable row: it is empty$"):
        read(rows_file())
    with pytest.raises(UserError, match=r"rows.jsonl: no split 'test'; it has 'train'$"):
        read(rows_file({"prompt": "q", "answer": "a"}), split="test")


def test_a_file_that_vanishes_after_load_is_named_with_its_row(folder, rows_file, read):
    prompts = read(rows_file({"prompt": "q", "answer": "a", "image": "red.png"}))
    (folder / "red.png").unlink()
    with pytest.raises(UserError, match=r"rows.jsonl: row 1: column 'image': red.png: no such file in"):
        prompts[0]


# ---- fingerprints ----

ROWS = [{"prompt": f"{number}?", "answer": str(number), "image": "red.png"} for number in range(4)]


def test_the_fingerprint_is_of_the_rows_wherever_and_however_they_lie(folder, rows_file, parquet_file, read, tmp_path):
    prompts = read(rows_file(*ROWS))
    assert len(prompts) == 4
    assert read(parquet_file(ROWS), columns=IMAGES).fingerprint == prompts.fingerprint
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    copy = read(str(moved / "rows.jsonl"), cache=tmp_path / "other cache", capability="other")
    assert copy.fingerprint == prompts.fingerprint


def test_every_change_of_a_row_changes_the_fingerprint(folder, rows_file, read):
    (folder / "red2.png").write_bytes(RED)
    first, *rest = ROWS
    changed = [
        [*ROWS[1:], ROWS[0]],
        rest,
        [first | {"prompt": "x"}, *rest],
        [first | {"answer": "x"}, *rest],
        [first | {"image": "red2.png"}, *rest],
        [first | {"image": None}, *rest],
        [first | {"image": None, "video": ["red.png"]}, *rest],
    ]
    fingerprints = {read(rows_file(*rows)).fingerprint for rows in changed}
    name = rows_file(*ROWS)
    fingerprints |= {read(name).fingerprint, read(name, suffix="s").fingerprint, read(name, system="s").fingerprint}
    (folder / "red.png").write_bytes(RED + b"\0")
    assert len(fingerprints | {read(name).fingerprint}) == len(changed) + 4


def test_bytes_in_the_rows_are_part_of_the_fingerprint(parquet_file, read):
    question = {"prompt": "q", "answer": "a"}
    names = (parquet_file([question | {"image": data}]) for data in (RED, BLUE))
    red, blue = (read(name, columns=IMAGES).fingerprint for name in names)
    assert red != blue


def test_keep_drops_and_counts_and_changes_the_fingerprint(rows_file, read):
    prompts = read(rows_file(*ROWS))
    unwanted = [prompts[0].messages, prompts[2].messages]
    short = prompts.keep(lambda sizes: "too-long" if sizes.messages in unwanted else None)
    assert [prompt.answer for prompt in short] == ["1", "3"]
    assert short.dropped == Counter({"too-long": 2})
    assert short.fingerprint == read(rows_file(ROWS[1], ROWS[3])).fingerprint != prompts.fingerprint
    assert short.label(1).endswith("rows.jsonl: row 4")
    assert prompts.dropped == Counter()


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"picture": "red.png"}, "'picture' (images); if they are about it, add images = \"picture\" to "),
        ({"picture": ["red.png", "blue.png"]}, "'picture' (images)"),
        ({"film": "clip.MP4"}, "'film' (videos); if they are about it, add videos = \"film\" to "),
        ({"id": "a/b.txt", "note": "see red.png " * 60, "n": 3, "tags": []}, None),
    ],
)
def test_media_that_no_column_names_are_told_in_a_line(read, rows_file, caplog, cells, message):
    rows = [{"prompt": "Which colour?", "answer": "red"} | cells]
    read(rows_file(*rows), columns={"images": "image"})
    assert len(caplog.messages) == (message is not None)
    if message is not None:
        assert message in caplog.messages[0]


def test_unmapped_pictures_in_parquet_are_told_and_mapped_ones_not(read, parquet_file, caplog):
    rows = [{"prompt": "Which colour?", "answer": "red", "image": image, "clip": CLIP} for image in (None, RED)]
    file = parquet_file(rows, Features({"image": Image(), "clip": Value("binary")} | TEXT))
    read(file, columns={})
    assert "media in 'clip' (videos), 'image' (images)" in caplog.messages[0]
    assert 'add videos = "clip" and images = "image" to capabilities.image.data.columns' in caplog.messages[0]
    caplog.clear()
    read(file, columns={"images": "image", "videos": "clip"})
    assert caplog.messages == []
