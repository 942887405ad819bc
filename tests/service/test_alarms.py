"""What deserves a look, and what does not any more."""

from datetime import timedelta
from pathlib import Path

import pytest

from service.alarms import alarms
from service.runs import Runs
from service.series import Series
from tests.page.folder import BEGAN, BRANCHES, RunWriter


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    writer = RunWriter(tmp_path)
    writer.steps(1, 5)
    return writer


def alarms_of(writer: RunWriter, after_s: float = 60) -> list[tuple[str, str, str, str]]:
    info = Runs(writer.out / "runs", is_read_only=True).info(writer.run)
    series = Series(writer.folder / "events.jsonl")
    series.refresh()
    assert info is not None
    return [(a.level, a.where, a.text, a.remedy) for a in alarms(info, series, BEGAN + timedelta(seconds=after_s))]


def test_a_run_that_goes_well_has_none(writer: RunWriter) -> None:
    assert alarms_of(writer) == []


def test_silence_of_a_run_is_told_and_of_a_finished_one_not(writer: RunWriter) -> None:
    assert [(where, text) for _, where, text, _ in alarms_of(writer, 50 + 600)] == [
        ("demo-1", "nothing was told for 10 min")
    ]
    writer.tell("run", 60, state="finished", name="demo", branches=dict.fromkeys(BRANCHES, 5))
    assert alarms_of(writer, 50 + 600) == []


def test_a_job_that_failed_for_good_comes_first_until_it_is_made(writer: RunWriter) -> None:
    writer.overlap(5, 0.8)
    writer.tell("failed", 55, worker="w", branch="image", step=6, error="no memory", dead=True)
    assert [level for level, *_ in alarms_of(writer)] == ["error", "warning"]
    assert alarms_of(writer)[0][1:] == (
        "image@6",
        "failed for good: no memory",
        "mend that, then: coevo jobs retry image",
    )
    writer.overlap(6, 0.95)
    writer.steps(6, 6)
    assert alarms_of(writer, 70) == []


@pytest.mark.parametrize(("key", "words"), [("native/decided", "one reward"), ("native/cut_off", "are cut off")])
def test_most_of_the_last_steps_decide_about_shares(writer: RunWriter, key: str, words: str) -> None:
    def tell(step: int) -> None:
        kind, second, fields = writer.step("text", step)
        writer.tell(kind, second, **{**fields, "metrics": fields["metrics"] | {key: 0.75}})

    tell(6)
    assert alarms_of(writer) == []  # one bad draw
    tell(7)
    tell(8)
    ((_, where, text, _),) = alarms_of(writer, 80)
    assert where == "text, native"
    assert text.startswith("75%")
    assert words in text


def test_a_warning_goes_with_its_step(writer: RunWriter) -> None:
    text = "native/mismatch: 0.2 nat lie between trainer and engine: give them the same base"
    writer.tell_all([writer.step("text", 6, warnings=[text])])
    ((_, where, said, remedy),) = alarms_of(writer)
    assert (where, remedy) == ("text@6", "give them the same base")
    assert said == "native/mismatch 0.2 nat lie between trainer and engine"
    writer.steps(7, 7)
    assert alarms_of(writer, 80) == []
