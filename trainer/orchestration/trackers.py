"""Trackers that people know: how each is opened, and how it takes numbers and a table of completions."""

import html
import importlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from adapters.errors import UserError

Numbers = Mapping[str, float]
Row = tuple[str, str, str, float | None, float | None]
COLUMNS = ("part", "prompt", "completion", "reward", "advantage")
"""A row's. The part is `native` or a teacher; without an advantage a completion left its group."""
MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+\-.!|~:]")
"""What may mean something in Markdown; `<`, `>` and `&` are HTML's."""
_NO_KEY = re.compile(r"[^\w\-./: ]", re.ASCII)
"""What MLflow refuses in the name of a metric: `avg@8` has one."""
_PARAM_CHARS, _PARAMS_AT_ONCE, _METRICS_AT_ONCE = 6000, 100, 1000
"""MLflow's own bounds: characters of a parameter, parameters of a request, and numbers of a request."""

log = logging.getLogger("coordinator")


@dataclass(frozen=True, slots=True)
class Tracker:
    """A tracker that is open for a run."""

    write: Callable[[int, Numbers], None]
    write_table: Callable[[int, str, Sequence[Row]], None]
    close: Callable[[], None]


Open = Callable[[str, str, Mapping[str, Any], Path], Tracker]
"""Project, run, recipe, and the folder for files on this machine."""


class Trackers:
    """Those that a recipe names. What one of them raises ends nothing: `tell` gets a line, and it gets no more."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        project: str,
        run: str,
        recipe: Mapping[str, Any],
        folder: Path,
        tell: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._open: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open[name] = OPEN[name](project, run, recipe, folder)
            except Exception as error:  # of any library: a wrong key, no network, a full disk
                self._tell(_line(name, "cannot be opened, the run goes on without it", error))

    def __bool__(self) -> bool:
        return bool(self._open)

    def write(self, step: int, numbers: Numbers) -> None:
        self._each(lambda tracker: tracker.write(step, numbers))

    def write_table(self, step: int, name: str, rows: Sequence[Row]) -> None:
        if rows:
            self._each(lambda tracker: tracker.write_table(step, name, rows))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, use: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                use(tracker)
            except Exception as error:
                self._tell(_line(name, "takes no more", error))
                del self._open[name]


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed: before a run begins, not at its first number."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.to: {name} is not installed; pip install {name}, or leave it out")


def markdown_table(rows: Sequence[Row]) -> str:
    """A table that shows texts as they are: what a model said is neither Markdown nor HTML."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | float | None) -> str:
    if not isinstance(value, str):
        return "" if value is None else f"{value:.4g}"
    text = MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", html.escape(value, quote=False).replace("&", "\0"))
    return text.replace("\0", "&").replace("\n", "<br>")


def _line(name: str, problem: str, error: Exception) -> str:
    return f"tracking.to: {name} {problem}: {type(error).__name__}: {' '.join(str(error).split())}"


def _tensorboard(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard" / project / run))

    def write(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def write_table(step: int, name: str, rows: Sequence[Row]) -> None:
        writer.add_text(name, markdown_table(rows), step)

    return Tracker(write, write_table, writer.close)


def _like_wandb(module: str) -> Open:
    """How wandb is opened, and trackio, which has the same calls."""

    def open(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> Tracker:
        from pandas import DataFrame

        tracker: Any = importlib.import_module(module)
        # With an id wandb goes on with the run that has it; trackio goes by the name.
        settings = {"id": run, "dir": str(folder)} if module == "wandb" else {}
        tracker.init(project=project, name=run, config=dict(recipe), resume="allow", **settings)
        if module == "wandb":  # its curves go over its own step otherwise
            tracker.define_metric("*", step_metric="train/step")

        def write(step: int, numbers: Numbers) -> None:
            # The step is a number of the row, not the tracker's own: that may only grow, and branches step at times of
            # their own.
            tracker.log({**numbers, "train/step": step})

        def write_table(step: int, name: str, rows: Sequence[Row]) -> None:
            # As a frame: trackio ignores the names of columns beside rows.
            frame = DataFrame(list(rows), columns=list(COLUMNS))
            tracker.log({name: tracker.Table(dataframe=frame), "train/step": step})

        return Tracker(write, write_table, tracker.finish)

    return open


def _mlflow(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> Tracker:
    # Before the import, which reads them: counts of use go to MLflow's makers, and bars to the coordinator's log.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

    server = os.environ.get("MLFLOW_TRACKING_URI")
    # Without a server a file beside the run; its artifacts beside it, and not in the folder of the moment.
    client: Any = MlflowClient(server or f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    artifacts = None if server else (folder.resolve() / "mlflow").as_uri()
    experiment = client.get_experiment_by_name(project)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(project, artifacts)
    # MLflow lets many runs have one name; a restart goes on with the one it has.
    runs = client.search_runs([experiment_id], f"attributes.run_name = '{run}'", max_results=1)
    run_id: str = (runs[0] if runs else client.create_run(experiment_id, run_name=run)).info.run_id
    client.update_run(run_id, status="RUNNING")
    params = [Param(name, value[:_PARAM_CHARS]) for name, value in _flat(recipe)] if not runs else []
    for first in range(0, len(params), _PARAMS_AT_ONCE):
        client.log_batch(run_id, params=params[first : first + _PARAMS_AT_ONCE])

    def write(step: int, numbers: Numbers) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(_NO_KEY.sub("_", name), value, now, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), _METRICS_AT_ONCE):  # an overlap of many branches has more
            client.log_batch(run_id, metrics[first : first + _METRICS_AT_ONCE])

    def write_table(step: int, name: str, rows: Sequence[Row]) -> None:
        # A table for a branch, which grows: MLflow lists its tables in a tag, which has room for a hundred. Not by
        # `log_table`: what it adds to it reads through pandas, and an answer of 007 is 7 then.
        path = f"{name}.json"
        tables = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        table: dict[str, list[Any]] = {"columns": ["step", *COLUMNS], "data": []}
        if any(known["path"] == path for known in tables):
            with tempfile.TemporaryDirectory() as local:
                table = json.loads(Path(client.download_artifacts(run_id, path, local)).read_bytes())
        else:
            tables.append({"path": path, "type": "table"})
        table["data"] += [(step, *row) for row in rows]
        client.log_text(run_id, json.dumps(table), path)
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(tables))

    return Tracker(write, write_table, lambda: client.set_terminated(run_id))


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The keys of a recipe as people write them after `--set`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(cast(dict[str, Any], value), f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value)


OPEN: Mapping[str, Open] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _like_wandb("wandb"),
    "trackio": _like_wandb("trackio"),
}
