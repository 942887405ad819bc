"""A run's numbers for trackers that people know: TensorBoard, Weights & Biases, trackio. The run's files have them too.

Whoever coordinates a run follows its events and passes every number on, under `BRANCH/METRIC` at the branch's step.
What one of them raises ends nothing: it is told once, and that tracker gets no more.

Left out: text, images, and what a tracker does when its own service is away.
"""

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from adapters.names import Ref
from clients.follow import follow
from trainer.reporting.events import Event, overlaps_of

Numbers = Mapping[str, float]
Write = Callable[[int, Numbers], None]

log = logging.getLogger("coordinator")


class Trackers:
    """Those that a recipe names. `folder` is for what they keep on this machine."""

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
                except Exception as error:
                    log.warning("%s takes no more numbers: %s: %s", name, type(error).__name__, error)
                    del self._writers[name]

    def close(self) -> None:
        for _, close in self._writers.values():
            close()


def numbers_of(event: Event) -> Iterator[tuple[int, Numbers]]:
    """What of an event is a number at a step."""
    match event["kind"]:
        case "step":
            told = {**event["metrics"], **{f"seconds/{name}": value for name, value in event["seconds"].items()}}
            yield (
                event["step"],
                {f"{event['branch']}/{name}": value for name, value in told.items() if value is not None},
            )
        case "overlap":
            ((_, found),) = overlaps_of([event])
            yield (
                event["step"],
                {
                    f"{measure}/{_branch(a)}-{_branch(b)}/{capability}": found.at(a, b, capability)[which]
                    for a in found.branches
                    for b in found.branches
                    if a != b
                    for capability in found.capabilities
                    for which, measure in enumerate(("overlap", "kl"))
                },
            )
        case "accuracy":
            yield (
                event["step"],
                {
                    f"{_branch(row['model'])}/accuracy/{row['exam']}/{row['way']}": row["accuracy"]
                    for row in event["rows"]
                    if row["accuracy"] is not None
                },
            )
        case _:
            return


async def track(url: str, api_key: str | None, run: str, trackers: Trackers, folder: Path) -> None:
    """Until the run is finished. What was passed on is known by its number, so that a restart repeats nothing."""
    seen = folder / run / ".tracked"
    after = int(seen.read_text()) if seen.exists() else 0
    try:
        async for number, event in follow(url, api_key, run, after):
            await asyncio.to_thread(trackers.write, event)
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(str(number))
            if event["kind"] == "run" and event["state"] == "finished":
                return
    finally:
        trackers.close()


def check_trackers(names: Sequence[str]) -> None:
    """That each is installed: before a run begins, not at its first number."""
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
    """trackio has the same three calls. Branches step at times of their own, so each event is a row with its step."""

    def open(project: str, run: str, recipe: Mapping[str, Any], folder: Path) -> tuple[Write, Callable[[], None]]:
        tracker: Any = importlib.import_module(module)
        settings = {"id": run, "dir": str(folder)} if module == "wandb" else {}
        tracker.init(project=project, name=run, config=dict(recipe), resume="allow", **settings)

        def write(step: int, numbers: Numbers) -> None:
            tracker.log({**numbers, "train/step": step})

        return write, tracker.finish

    return open


OPEN: Mapping[str, Callable[..., tuple[Write, Callable[[], None]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _like_wandb("wandb"),
    "trackio": _like_wandb("trackio"),
}
