"""A run's events as columns, beside what its file says line by line."""

import json
from pathlib import Path

import pytest

from service.series import Series
from tests.page.folder import RunWriter


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    return RunWriter(tmp_path, last=100)


def read(writer: RunWriter) -> Series:
    series = Series(writer.folder / "events.jsonl")
    series.refresh()
    return series


def recorded(writer: RunWriter, branch: str, key: str) -> list[float]:
    lines = [json.loads(line) for line in (writer.folder / "events.jsonl").read_text().splitlines()]
    return [event["metrics"][key] for event in lines if event.get("branch") == branch and event["kind"] == "step"]


def test_a_slice_has_the_numbers_of_the_file(writer: RunWriter) -> None:
    writer.steps(1, 40)
    part = read(writer).slice("image", ["native/reward"], 11, 20, 100)
    assert part.steps == list(range(11, 21))
    assert part.values["native/reward"] == recorded(writer, "image", "native/reward")[10:20]


def test_more_steps_than_points_become_means(writer: RunWriter) -> None:
    writer.steps(1, 100)
    part = read(writer).slice("text", ["native/reward"], 0, 1000, 10)
    rewards = recorded(writer, "text", "native/reward")
    assert part.steps == list(range(10, 101, 10))
    means = [sum(rewards[i : i + 10]) / 10 for i in range(0, 100, 10)]
    assert part.values["native/reward"] == pytest.approx(means, rel=1e-5)


def test_what_a_step_has_not_is_null_and_no_part_of_a_mean(writer: RunWriter) -> None:
    writer.steps(1, 10)
    values = read(writer).slice("text", ["image/gap"], 0, 100, 100).values["image/gap"]
    assert [value is None for value in values] == [step % 5 not in (4, 0) for step in range(1, 11)]
    assert read(writer).slice("text", ["image/gap"], 0, 100, 1).values["image/gap"] == pytest.approx(
        [sum(value for value in values if value is not None) / 4], rel=1e-5
    )


def test_a_file_that_grows_is_read_on_whole_lines(writer: RunWriter) -> None:
    writer.steps(1, 3)
    series = read(writer)
    path = writer.folder / "events.jsonl"
    line = json.dumps({"id": "9-0", "at": "2026-01-05T09:01:00+00:00", "kind": "step", "branch": "text", "step": 4})
    with path.open("a") as file:
        file.write(line[:30])
    series.refresh()
    assert series.head("text") == 3
    with path.open("a") as file:
        file.write(line[30:] + "\n")
    series.refresh()
    assert series.head("text") == 4


def test_a_step_that_is_told_again_counts_once(writer: RunWriter) -> None:
    writer.steps(1, 3)
    writer.steps(2, 2)
    part = read(writer).slice("text", ["native/reward"], 0, 100, 100)
    assert part.steps == [1, 2, 3]
    assert part.values["native/reward"][1] == recorded(writer, "text", "native/reward")[3]


def test_time_between_two_steps_is_waiting(writer: RunWriter) -> None:
    writer.steps(1, 10)
    series = read(writer)
    assert series.totals("text") == {"gather": 50, "learn": 20, "publish": 10, "waiting": 18}  # ten seconds, eight busy
    bars = series.bars("text", 10)
    assert [(bar.phase, bar.first, bar.last) for bar in bars] == [
        ("rlvr", 1, 3),
        ("opd", 4, 5),
        ("rlvr", 6, 8),
        ("opd", 9, 10),
    ]
    assert len(series.bars("text", 1000)) == 10  # where there is room, waits are seen
    assert [(bar.first, bar.last) for bar in series.bars("text", 2)] == [(1, 5), (6, 10)]  # and where there is none
