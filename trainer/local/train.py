"""The steps of a plan, all made on this machine: queue server, service, workers and coordinator as child processes.

Left out: what is done with what they made (`finish`, `compare`), and what is shown meanwhile (`console`).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from adapters.errors import UserError
from trainer.local.processes import COORDINATOR, LOOK_S, SERVICE, ProcessGroup, Stopped
from trainer.plan.make import make_plan
from trainer.queue.client import Queue, QueueAwayError
from trainer.queue.server import URL_VARIABLE, describe, start
from trainer.recipe import Recipe
from trainer.recipe.file import load, run_id, write_resolved
from trainer.reporting.console import Console
from trainer.reporting.events import read_events


def settings_of(changes: Sequence[str]) -> list[str]:
    """The words of a command line that make them."""
    return [word for one in changes for word in ("--set", one)]


def check_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """A new one for the run, or the run's own."""
    there = out / "recipe.json"
    if there.exists() and not resume:
        raise UserError(f"{out}: holds a run; add --resume to go on with it, or take another folder with --out")
    if there.exists() and run_id(load(there)) != run_id(recipe):
        raise UserError(f"{out}: holds a run of another recipe; give the one in {there}, or another folder with --out")


@contextmanager
def run_processes(out: Path, recipe: Recipe) -> Generator[ProcessGroup]:
    """A queue server, and room for the other processes; none of them outlives the block. They read the recipe in the
    folder, which is written once nobody else works there."""
    with stop_signals() as is_stopped, queue_server(out) as url:
        write_resolved(recipe, out)
        environ = {URL_VARIABLE: url, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with ProcessGroup(out / "logs", environ, is_stopped) as processes:
            yield processes


@contextmanager
def stop_signals() -> Generator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM: the first asks to stop, the second ends at once, and the processes with us."""
    signals = 0

    def on_signal(number: int, _: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(128 + number)
        print("stopping after the update under way; once more to stop at once", file=sys.stderr)

    before: Mapping[signal.Signals, object] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: signals > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@contextmanager
def queue_server(out: Path) -> Generator[str]:
    """The address of the queue server, one of its own if none is named."""
    if url := os.environ.get(URL_VARIABLE):
        describe(url)
        yield url
        return
    with start(out / "queue") as server:
        yield server.url


def train(recipe: Recipe, out: Path, processes: ProcessGroup, *, worker_each: bool = False, port: int = 0) -> None:
    """Makes all steps of the plan."""
    branches = [start.branch for start in make_plan(recipe).starts]
    workers = [[branch] for branch in branches] if worker_each else [["all"]]
    flags = [f"--store={out / 'store'}", f"--runs={out / 'runs'}", f"--port={port}"]
    resolved, queue = str(out / "recipe.json"), Queue(processes.environ[URL_VARIABLE])
    for job in queue.dead():  # whatever it was is mended, or it fails again
        queue.retry(job.branch)
    url = processes.serve(SERVICE, resolved, *flags)
    processes.environ["COEVO_SERVICE_URL"] = url
    processes.start(COORDINATOR, "-m", "clients.cli", "coordinate", resolved, f"--tracking={out / 'runs'}")
    for names in workers:
        words = [word for name in names for word in ("--branch", name)]
        processes.start(
            f"worker-{names[0]}", "-m", "trainer.worker", *words, "--name", f"{out.resolve().name}-{names[0]}"
        )
    with Console(recipe, events_of(out, recipe), url) as console:
        while not processes.is_stopped() and processes.is_running(COORDINATOR):
            processes.restart_dead()
            _check_jobs(queue, branches)
            console.look()
            time.sleep(LOOK_S)
        console.look()
    is_done = processes.status(COORDINATOR) == 0 and not processes.is_stopped()
    processes.stop()
    if not is_done:
        raise Stopped


def _check_jobs(queue: Queue, branches: Sequence[str]) -> None:
    """Nobody may be there to mend and retry: what fails for good ends the run."""
    with suppress(QueueAwayError):
        for job in queue.dead():
            if job.branch in branches:
                raise UserError(f"{job.job} failed for good: {job.error}; mend that, then go on with --resume")


def is_trained(out: Path, recipe: Recipe) -> bool:
    """The coordinator has said so, after the last step and the last measurement of all the plan's branches."""
    told = [event for event in read_events(events_of(out, recipe)) if event["kind"] == "run"]
    made = make_plan(recipe)
    ends = {start.branch: made.head(start.branch) for start in made.starts}
    return any(event["state"] == "finished" and event["branches"] == ends for event in told)


def events_of(out: Path, recipe: Recipe) -> Path:
    return out / "runs" / run_id(recipe) / "events.jsonl"
