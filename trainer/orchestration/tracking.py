"""A run's numbers and some of its completions for trackers (`trackers`). The run's files have them too.

Whoever coordinates a run follows its events and passes every number on, under `BRANCH/METRIC` at the branch's step; and
now and then some prompts with all of their completions, under `BRANCH/completions`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from statistics import fmean

from adapters.names import Ref
from clients.address import ServiceAddress
from clients.client import AsyncClient, RefusedError, ServiceError
from clients.follow import follow
from service.schemas import StepRollouts
from trainer.orchestration.trackers import Numbers, Row, Trackers
from trainer.queue.client import Queue, QueueAwayError
from trainer.recipe import Recipe
from trainer.recipe.file import run_id
from trainer.reporting.events import Event, overlaps_of

GROUPS = 2
"""Prompts of each part in a table: enough to see how a group's answers differ, and a page to read at most."""
SHOWN = 4000
"""Characters of a text. Of a longer one its beginning and its end, where the answer is."""
KEPT_S = 10.0
"""The longest wait for a step's record, which comes after the step's event. The numbers behind it wait as well."""
_LOOK_S = 0.5

log = logging.getLogger("coordinator")


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
                    likeness = overlaps.at(a, b, capability)
                    numbers |= {f"{field}/{name}": value for field, value in likeness._asdict().items()}
        case "accuracy":
            for row in event["rows"]:
                numbers[f"{_branch(row['model'])}/accuracy/{row['exam']}/{row['way']}"] = row["accuracy"]
        case _:
            return
    yield event["step"], {name: value for name, value in numbers.items() if value is not None}


async def track(recipe: Recipe, client: AsyncClient, queue: Queue, service: ServiceAddress, folder: Path) -> None:
    """Passes the run's events on to the trackers that the recipe names, until the run is finished."""
    settings, run = recipe.tracking, run_id(recipe)
    if not settings.to:
        return

    def tell(text: str) -> None:
        log.warning("%s", text)
        with contextlib.suppress(QueueAwayError):  # the log has it
            queue.tell(run, "tracker", text=text)

    def open_trackers() -> Trackers:
        full_recipe = recipe.model_dump(mode="json")
        return Trackers(settings.to, project=settings.project, run=run, recipe=full_recipe, folder=folder, tell=tell)

    trackers = await asyncio.to_thread(open_trackers)  # some ask their server
    if not trackers:
        return
    seen = folder / run / ".tracked"  # the number of the last event passed on: a restart repeats none
    after = int(seen.read_text()) if seen.exists() else 0
    try:
        async for number, event in follow(service["url"], service["api_key"], run, after):
            for step, numbers in numbers_of(event):
                await asyncio.to_thread(trackers.write, step, numbers)  # some send it over the network at once
            if event["kind"] == "step" and has_table(event["step"], settings.completions):
                rows = await rows_of_step(client, run, event["branch"], event["step"])
                await asyncio.to_thread(trackers.write_table, event["step"], f"{event['branch']}/completions", rows)
            if not trackers:  # nobody takes this event any more: a restart tries it again
                return
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(str(number))
            if event["kind"] == "run" and event["state"] == "finished":
                return
    finally:
        trackers.close()


def has_table(step: int, every: int) -> bool:
    """Whether a step's completions are shown: the first one's, and every so many."""
    return every > 0 and (step == 1 or step % every == 0)


async def rows_of_step(client: AsyncClient, run: str, branch: str, step: int) -> list[Row]:
    """Some prompts of a step with their completions. None where its record was dropped again, or never kept."""
    deadline = time.monotonic() + KEPT_S
    try:
        while True:
            with contextlib.suppress(RefusedError):
                return table_rows(await client.rollouts(run, branch, step, count=GROUPS))
            # A branch makes a step after the other: where a later record is, this one comes no more.
            recorded = (await client.recorded_steps(run)).get(branch, [])
            if max(recorded, default=0) > step or time.monotonic() > deadline:
                break
            await asyncio.sleep(_LOOK_S)
    except ServiceError as error:  # numbers go on all the same
        log.warning("%s@%d: no table of its completions: %s", branch, step, error)
    return []


def table_rows(rollouts: StepRollouts) -> list[Row]:
    """A row for each completion. Its advantage is the mean over its tokens: a teacher's differ from token to token."""
    return [
        (
            part.name,
            _shown(group.question),
            _shown(completion.text),
            completion.reward,
            fmean(completion.advantages) if completion.advantages else None,
        )
        for part in rollouts.parts
        for group in part.groups
        for completion in group.completions
    ]


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"


def _branch(name: str) -> str:
    return Ref.parse(name).branch
