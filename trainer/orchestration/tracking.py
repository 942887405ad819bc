"""A run's numbers for trackers that people know: TensorBoard, Weights & Biases, trackio. The run's files have them too.

Whoever coordinates a run follows its events and passes every number on, under `BRANCH/METRIC` at the branch's step.
What one of them raises ends nothing: it is told once, and that tracker gets no more.
"""

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from adapters.names import Ref
from clients.follow import follow
from trainer.recipe import Recipe
from trainer.recipe.file import run_id
from trainer.reporting.events import Event, overlaps_of

Numbers = Mapping[str, float]
Write = Callable[[int, Numbers], None]

log = logging.getLogger("coordinator")


class Trackers:
    """The trackers that a recipe names. `folder` is for what they keep on this machine."""

    def __init__(
        self, names: Sequence[str], *, project: str, run: str, recipe: Mapping[str, Any], folder: Path
    ) -> None:
        self._writers: dict[str, tuple[Write, Callable[[], None]]] = {
            name: OPEN[name](project, run, recipe, folder) for name in names
        }

    def write(self, event: Event) -> None:
        for step, numbers in numbers_of(event):
            for name, (write, _) in list(self._writers.items()):
                try:
                    write(step, numbers)
                except Exception as error:  # whatever it is: a tracker must not end a run
                    log.warning("%s takes no more numbers: %s: %s", name, type(error).__name__, error)
                    del self._writers[name]

    def close(self) -> None:
        for _, close in self._writers.values():
            close()


def numbers_of(event: Event) -> Iterator[tuple[int, Numbers]]:
    """The numbers in an event, at their step; metrics that were not taken are None there, and left out."""
    numbers: dict[str, float | None] = {}
    match event["kind"]:
        case "step":
            metrics = {**event["metrics"], **{f"seconds/{name}": value for name, value in event["seconds"].items()}}
            numbers = {f"{event['branch']}/{name}": value for name, value in metrics.items()}
        case "overlap":
            ((_, overlaps),) = overlaps_of([event])
            for a, b in permutations(overlaps.branches, 2):
                for capability in overlaps.capabilities:
                    name = f"{_branch(a)}-{_branch(b)}/{capability}"
                    numbers[f"overlap/{name}"], numbers[f"kl/{name}"] = overlaps.at(a, b, capability)
        case "accuracy":
            for row in event["rows"]:
                numbers[f"{_branch(row['model'])}/accuracy/{row['exam']}/{row['way']}"] = row["accuracy"]
        case _:
            return
    yield event["step"], {name: value for name, value in numbers.items() if value is not None}


async def track(recipe: Recipe, url: str, api_key: str | None, folder: Path) -> None:
    """Passes the run's events on to the trackers that the recipe names, until the run is finished."""
    settings, run = recipe.tracking, run_id(recipe)
    if not settings.to:
        return
    full_recipe = recipe.model_dump(mode="json")
    trackers = Trackers(settings.to, project=settings.project, run=run, recipe=full_recipe, folder=folder)
    seen = folder / run / ".tracked"  # the number of the last event passed on: a restart repeats none
    after = int(seen.read_text()) if seen.exists() else 0
    try:
        async for number, event in follow(url, api_key, run, after):
            await asyncio.to_thread(trackers.write, event)  # some send it over the network at once
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(str(number))
            if event["kind"] == "run" and event["state"] == "finished":
                return
    finally:
        trackers.close()


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that are not installed: before a run begins, not at its first number."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"tracking.to: {name} is not installed; pip install {name}, or leave it out")


def _branch(name: str) -> str:
    return Ref.parse(name).branch


def _tensorboard(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> tuple[Write, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard" / project / run))

    def write(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _like_wandb(module: str) -> Callable[..., tuple[Write, Callable[[], None]]]:
    """How wandb is opened, and trackio, which has the same three calls."""

    def open(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> tuple[Write, Callable[[], None]]:
        tracker: Any = importlib.import_module(module)
        # With an id wandb goes on with the run that has it; trackio goes by the name.
        settings = {"id": run, "dir": str(folder)} if module == "wandb" else {}
        tracker.init(project=project, name=run, config=dict(recipe), resume="allow", **settings)

        def write(step: int, numbers: Numbers) -> None:
            # The step is a number of the row, not the tracker's own: that may only grow, and branches step at times of
            # their own.
            tracker.log({**numbers, "train/step": step})

        return write, tracker.finish

    return open


OPEN: Mapping[str, Callable[..., tuple[Write, Callable[[], None]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _like_wandb("wandb"),
    "trackio": _like_wandb("trackio"),
}
