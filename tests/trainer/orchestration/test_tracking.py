"""A run in the own files of TensorBoard, MLflow and wandb, read back; and trackers that fail."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import UserError
from clients.client import AsyncClient
from service.look import folder_app
from tests.clients.test_client import serving
from tests.faults.recipes import small
from tests.page.folder import HOSTILE, RunWriter
from tests.trainer.orchestration import run_events
from tests.trainer.orchestration.test_scheduler import kinds
from trainer.orchestration import tracking
from trainer.orchestration.trackers import COLUMNS, Tracker, Trackers, check_trackers, markdown_table
from trainer.orchestration.tracking import has_table, numbers_of, track
from trainer.queue.client import Queue
from trainer.recipe import Recipe
from trainer.recipe.file import run_id

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # TensorBoard's


def accumulator(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    accumulator = EventAccumulator(str(folder), {TENSORS: 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = accumulator(folder)
    return {
        name: [(point.step, round(point.value, 4)) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


class Cells(HTMLParser):
    """The rows of a table's body, as people see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "br":
            self.rows[-1][-1] += "\n"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


def shown(text: str) -> Cells:
    """What TensorBoard shows of a Markdown text."""
    from tensorboard.plugin_util import markdown_to_safe_html

    return Cells(markdown_to_safe_html(text))


def tables(folder: Path, name: str) -> dict[int, list[list[str]]]:
    texts = accumulator(folder).Tensors(f"{name}/text_summary")
    return {text.step: shown(text.tensor_proto.string_val[0].decode()).rows for text in texts}


RECIPE = {"name": "small", "method": {"seeds": [0, 1]}}


def opened(names: list[str], folder: Path, tell: Callable[[str], None] = print) -> Trackers:
    return Trackers(names, project="coevo", run="small-1", recipe=RECIPE, folder=folder, tell=tell)


def write(trackers: Trackers) -> None:
    for event in run_events.EVENTS:
        for step, numbers in numbers_of(event):
            trackers.write(step, numbers)


def test_every_number_of_a_run_is_in_tensorboard_at_its_step(tmp_path: Path) -> None:
    trackers = opened(["tensorboard"], tmp_path)
    write(trackers)
    trackers.close()
    series = scalars(tmp_path / "tensorboard/coevo/small-1")
    assert series["text/native/reward"] == [(1, 0.5), (2, 0.75), (3, 0.75)]
    assert series["image/seconds/learn"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert series["overlap/text-image/image"] == [(3, 0.94)]
    assert series["shared/text-image/image"] == [(3, 0.98)]
    assert series["kl/image-base/text"] == [(3, 0.02)]
    assert series["text/accuracy/mean/greedy"] == [(3, 0.625)]


def test_what_has_no_number_is_left_out() -> None:
    event = run_events.step("text", 1, 0.5)
    event["metrics"]["native/kl"] = None
    ((number, numbers),) = numbers_of(event)
    assert number == 1
    assert "text/native/kl" not in numbers
    assert list(numbers_of(run_events.run("running"))) == []


@pytest.mark.parametrize(
    "text",
    [
        HOSTILE,
        "1. first\n2. second\n\n# no title | no *cell* `x`",
        "![picture](http://elsewhere/x.png) [link](http://elsewhere) &amp; <b>",
        "Straße \\| ~~~ _a_ http://elsewhere {x} 2 < 3 & 4 > 1",
    ],
)
def test_a_text_in_a_table_is_shown_as_it_is(text: str) -> None:
    cells = shown(markdown_table([("native", text, "42", 1.0, None)]))
    assert cells.rows == [[*COLUMNS], ["native", text, "42", "1", ""]]
    assert cells.tags <= {"table", "thead", "tbody", "tr", "th", "td", "br"}


# ---- a run ----


def recipe_of(*changes: str) -> Recipe:
    return small("tracking.to=['tensorboard']", *changes)


def tracked(recipe: Recipe, out: Path, queue: Queue) -> Path:
    """Follows a run's folder to its end. Gives TensorBoard's folder."""
    with serving(folder_app(out, None)) as url:

        async def follow() -> None:
            async with AsyncClient(url) as client:
                await track(recipe, client, Queue(queue.url), {"url": url, "api_key": None}, out / "runs")

        asyncio.run(asyncio.wait_for(follow(), 60))
    return out / "runs/tensorboard/coevo" / run_id(recipe)


def test_tables_of_completions_stand_at_their_steps(tmp_path: Path, queue: Queue) -> None:
    recipe = recipe_of("tracking.completions=2")
    writer = RunWriter(tmp_path, run_id(recipe))
    writer.steps(1, 5)
    for step in range(1, 6):
        writer.rollouts("text", step)
    for branch in ("image", "video"):  # of these the last record alone is still there
        writer.rollouts(branch, 5)
    writer.tell("run", 60, state="finished")
    folder = tracked(recipe, tmp_path, queue)
    steps = tables(folder, "text/completions")
    assert list(steps) == [1, 2, 4]
    head, *rows = steps[4]
    assert head == [*COLUMNS]
    assert len(rows) == 2 * tracking.GROUPS * 8, "some prompts of both parts, with all of their completions"
    assert rows[0] == ["native", HOSTILE, f"{HOSTILE} answer 0", "0", "-1"]
    assert rows[9] == ["native", "question 1?", "answer 1 to question 1", "1", "1"]
    assert rows[16][0] == "image"
    assert "image/completions/text_summary" not in accumulator(folder).Tags()["tensors"]
    assert [step for step, _ in scalars(folder)["image/native/reward"]] == [1, 2, 3, 4, 5]
    assert kinds(queue, "tracker") == []


def test_a_record_that_comes_after_its_event_is_waited_for(tmp_path: Path, queue: Queue) -> None:
    recipe = recipe_of()
    writer = RunWriter(tmp_path, run_id(recipe), branches=["text", "image"])
    writer.tell_all([writer.step("text", 1)])
    writer.tell("run", 60, state="finished")
    late = threading.Timer(2.0, writer.rollouts, ("text", 1))
    late.start()
    assert list(tables(tracked(recipe, tmp_path, queue), "text/completions")) == [1]
    late.join()


def test_a_table_comes_first_and_every_so_many_steps() -> None:
    assert [step for step in range(1, 10) if has_table(step, 4)] == [1, 4, 8]
    assert not any(has_table(step, 0) for step in range(1, 10))


# ---- trackers that fail ----


def test_a_tracker_that_fails_is_told_once_and_gets_no_more(tmp_path: Path) -> None:
    lines: list[str] = []
    trackers = opened(["tensorboard"], tmp_path, lines.append)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    trackers._open["broken"] = Tracker(fail, fail, fail)
    write(trackers)
    assert lines == ["tracking.to: broken takes no more: ZeroDivisionError: division by zero"]
    trackers.close()
    assert len(lines) == 1
    assert "text/native/reward" in scalars(tmp_path / "tensorboard/coevo/small-1")


def test_a_tracker_that_cannot_be_opened_is_an_event_and_a_line(tmp_path: Path, queue: Queue, caplog) -> None:
    recipe = recipe_of()
    writer = RunWriter(tmp_path, run_id(recipe))
    (tmp_path / "runs/tensorboard").write_text("no folder")
    with caplog.at_level(logging.WARNING, "coordinator"):
        tracked(recipe, tmp_path, queue)  # ends though the run goes on: there is nobody to pass anything on to
    (event,) = kinds(queue, "tracker")
    text = "tracking.to: tensorboard cannot be opened, the run goes on without it: "
    assert event["text"].startswith(text)
    assert [record.getMessage() for record in caplog.records if record.name == "coordinator"] == [event["text"]]
    assert not (writer.folder / ".tracked").exists()


def test_a_tracker_that_is_not_installed_is_told_before_the_run() -> None:
    check_trackers(["tensorboard"])
    with pytest.raises(UserError, match=r"tracking\.to: no_such_tracker is not installed; pip install no_such_tracker"):
        check_trackers(["no_such_tracker"])


# ---- trackers whose files are read back by themselves ----


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's, of SQLAlchemy
def test_mlflow_has_the_numbers_and_a_table_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow
    from mlflow.artifacts import load_text

    for step in (1, 2):  # the second time as a coordinator that was started again
        trackers = opened(["mlflow"], tmp_path, pytest.fail)
        trackers.write(step, {"text/native/reward": step / 2, "text/accuracy/mean/avg@8": 0.25})
        trackers.write_table(step, "text/completions", [("native", HOSTILE, "007", 1.0, None)])
        trackers.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("coevo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("small-1", "FINISHED")
    assert run.data.params == {"name": "small", "method.seeds": "[0, 1]"}
    history = client.get_metric_history(run.info.run_id, "text/native/reward")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0)]
    assert run.data.metrics["text/accuracy/mean/avg_8"] == 0.25
    assert len(client.load_table(experiment.experiment_id, "text/completions.json", [run.info.run_id])) == 2
    text = load_text(f"{run.info.artifact_uri}/text/completions.json")
    rows = [[step, "native", HOSTILE, "007", 1.0, None] for step in (1, 2)]
    assert json.loads(text) == {"columns": ["step", *COLUMNS], "data": rows}


def test_wandb_has_the_numbers_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # all that it would send lies in a file then
    trackers = opened(["wandb"], tmp_path, pytest.fail)
    write(trackers)
    trackers.write_table(3, "text/completions", [("native", HOSTILE, "42", 1.0, None)])
    trackers.close()
    rows = wandb_rows(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    assert [(row["train/step"], row["text/native/reward"]) for row in rows if "text/native/reward" in row] == [
        (1, 0.5),
        (2, 0.75),
        (3, 0.75),
    ]
    (table,) = [row for row in rows if "text/completions/path" in row]
    assert table["train/step"] == 3
    (file,) = tmp_path.glob(f"wandb/offline-run-*/files/{table['text/completions/path']}")
    assert json.loads(file.read_bytes()) == {"columns": [*COLUMNS], "data": [["native", HOSTILE, "42", 1.0, None]]}


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    """What was logged. The file is a log of LevelDB: blocks of 32 KiB, and a record in one piece or in several."""
    from wandb.proto import wandb_internal_pb2 as messages

    data, rows, begin, whole = path.read_bytes(), [], 7, b""
    while begin + 7 < len(data):
        room = 2**15 - begin % 2**15
        if room < 7:  # too little for a head: the next block
            begin += room
            continue
        length, kind = int.from_bytes(data[begin + 4 : begin + 6], "little"), data[begin + 6]
        whole += data[begin + 7 : begin + 7 + length]
        begin += 7 + length
        if kind in (1, 4):  # all of it, or its last piece
            record: Any = messages.Record()  # pyright: ignore[reportAttributeAccessIssue]
            record.ParseFromString(whole)
            whole = b""
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows
