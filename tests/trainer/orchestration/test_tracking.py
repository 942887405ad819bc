"""Numbers of a run in TensorBoard's own files, read back by TensorBoard."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapters.errors import UserError
from tests.trainer.orchestration import run_events
from trainer.orchestration.tracking import Trackers, check_trackers, numbers_of


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        name: [(point.step, round(point.value, 4)) for point in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def test_every_number_of_a_run_is_in_tensorboard_at_its_step(tmp_path: Path) -> None:
    trackers = Trackers(["tensorboard"], project="coevo", run="small-1", recipe={}, folder=tmp_path)
    for event in run_events.EVENTS:
        trackers.write(event)
    trackers.close()
    series = scalars(tmp_path / "tensorboard/coevo/small-1")
    assert series["text/native/reward"] == [(1, 0.5), (2, 0.75), (3, 0.75)]
    assert series["image/seconds/learn"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert series["overlap/text-image/image"] == [(3, 0.94)]
    assert series["kl/image-base/text"] == [(3, 0.02)]
    assert series["text/accuracy/mean/greedy"] == [(3, 0.625)]


def test_what_has_no_number_is_left_out() -> None:
    event = run_events.step("text", 1, 0.5)
    event["metrics"]["native/kl"] = None
    ((number, numbers),) = numbers_of(event)
    assert number == 1
    assert "text/native/kl" not in numbers
    assert list(numbers_of(run_events.run("running"))) == []


def test_a_tracker_that_fails_is_told_once_and_gets_no_more(tmp_path: Path, caplog) -> None:
    trackers = Trackers(["tensorboard"], project="coevo", run="small-1", recipe={}, folder=tmp_path)
    trackers.close()

    def write(step: int, numbers: Mapping[str, float]) -> None:
        raise ZeroDivisionError("division by zero")

    trackers._writers["broken"] = (write, lambda: None)
    with caplog.at_level(logging.WARNING, "coordinator"):
        for event in run_events.EVENTS:
            trackers.write(event)
    assert [record.getMessage() for record in caplog.records if "broken" in record.getMessage()] == [
        "broken takes no more numbers: ZeroDivisionError: division by zero"
    ]


def test_a_tracker_that_is_not_installed_is_told_before_the_run(monkeypatch) -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match=r"tracking\.to: no_such_tracker is not installed; pip install no_such_tracker"):
        check_trackers(["no_such_tracker"])
