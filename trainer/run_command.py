"""`coevo run RECIPE`: a whole run on this machine, from one command.

Queue server (unless COEVO_REDIS_URL names one), service, worker and coordinator as child processes; everything they
keep lies in one folder:

    DIR/recipe.json      what is computed            DIR/runs/ID/events.jsonl   what happened
    DIR/store/           every revision              DIR/runs/ID/rollouts/      what each step learnt from
    DIR/queue/           the queue server's files    DIR/logs/                  what the processes said
    DIR/merged/          the merged model            DIR/results.json           the accuracy of every model

Ctrl-C stops after the update under way and says how to go on. Left out: what a run ends with (`finish`), what is shown
meanwhile (`console`), and who restarts a service whose engine died (it does itself).
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from adapters.errors import UserError
from adapters.names import MERGED
from trainer.children import COORDINATOR, SERVICE, Children
from trainer.console import Console
from trainer.coordinator import run_id
from trainer.events import overlap_lines, read_events
from trainer.finish import ADAPTER, Outcome, finish
from trainer.jobs import Queue, QueueAwayError
from trainer.picture import curves
from trainer.queue_server import URL_VARIABLE, describe, start
from trainer.recipe import Recipe
from trainer.recipe.file import load, write_resolved
from trainer.scoreboard import show
from trainer.systems import plan
from trainer.tracking import check_trackers

_LOOK_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything lies [out/NAME]")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    parser.add_argument("--worker-each", action="store_true", help="a worker for each branch instead of one for all")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the service [any free one]")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    check_trackers(recipe.tracking.to)
    out = arguments.out or Path("out") / recipe.name
    _check_folder(out, recipe, resume=arguments.resume)
    write_resolved(recipe, out)
    with _stopping() as stop, ExitStack() as stack:
        threads, url = os.environ.get("OMP_NUM_THREADS", "1"), stack.enter_context(_queue(out))
        environ = {URL_VARIABLE: url, "OMP_NUM_THREADS": threads}
        children = stack.enter_context(Children(out / "logs", environ))
        outcome = None
        if is_trained(out, recipe) or _train(recipe, out, children, stop, arguments):
            outcome = finish(recipe, out, children, lambda: stop.is_set)
    if outcome is None:
        changes = "".join(f" --set {one}" for one in arguments.set)
        print(f"stopped; to go on: coevo run {arguments.recipe}{changes} --out {out} --resume")
        return 130
    _tell(recipe, out, outcome)
    return 0


def is_trained(out: Path, recipe: Recipe) -> bool:
    """The coordinator has said so, after the last step and the last measurement."""
    told = [event for event in read_events(events_of(out, recipe)) if event["kind"] == "run"]
    return bool(told) and told[-1]["state"] == "finished"


def events_of(out: Path, recipe: Recipe) -> Path:
    return out / "runs" / run_id(recipe) / "events.jsonl"


def _train(recipe: Recipe, out: Path, children: Children, stop: "_Stop", arguments: argparse.Namespace) -> bool:
    """All steps of the plan. False: told to stop before."""
    branches = [start.branch for start in plan(recipe).starts]
    workers = [[branch] for branch in branches] if arguments.worker_each else [["all"]]
    flags = [f"--store={out / 'store'}", f"--runs={out / 'runs'}", f"--port={arguments.port}"]
    resolved, queue = str(out / "recipe.json"), Queue(children.environ[URL_VARIABLE])
    for job in queue.dead():  # whatever it was is mended, or it fails again
        queue.retry(job.branch)
    url = children.serve(SERVICE, resolved, *flags, is_stopped=lambda: stop.is_set)
    if url is None:
        return False
    children.environ["COEVO_SERVICE_URL"] = url
    children.start(COORDINATOR, "-m", "clients.cli", "coordinate", resolved, f"--tracking={out / 'runs'}")
    for names in workers:
        words = [word for name in names for word in ("--branch", name)]
        children.start(
            f"worker-{names[0]}", "-m", "trainer.worker", *words, "--name", f"{out.resolve().name}-{names[0]}"
        )
    with Console(recipe, events_of(out, recipe), url) as console:
        while not stop.is_set and children.is_running(COORDINATOR):
            children.look_after()
            _check_jobs(queue, branches)
            console.look()
            time.sleep(_LOOK_S)
        console.look()
    is_done = children.status(COORDINATOR) == 0 and not stop.is_set
    children.stop()
    return is_done


def _check_jobs(queue: Queue, branches: Sequence[str]) -> None:
    """Nobody may be there to mend and retry: what fails for good ends the run."""
    with suppress(QueueAwayError):
        for job in queue.dead():
            if job.branch in branches:
                raise UserError(f"{job.job} failed for good: {job.error}; mend that, then go on with --resume")


def _tell(recipe: Recipe, out: Path, outcome: Outcome) -> None:
    """The table, and where everything is."""
    show(recipe.name, outcome.found, outcome.means)
    for line in overlap_lines(read_events(events_of(out, recipe))):
        print(line)
    picture = curves(read_events(events_of(out, recipe)), out / "curves.png")
    print(f"{run_id(recipe)} is finished: {out / 'results.json'} has the table, {out / 'items.jsonl'} every answer,")
    print(f"  {out / 'store'} every revision, {picture} what happened on the way")
    if (out / MERGED).exists():
        print(f"  {out / MERGED} is the merged model, {out / ADAPTER} the same as an adapter")


def _check_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    there = out / "recipe.json"
    if not there.exists():
        return
    if not resume:
        raise UserError(f"{out}: holds a run; add --resume to go on with it, or take another folder with --out")
    if run_id(load(there)) != run_id(recipe):
        raise UserError(f"{out}: holds a run of another recipe; give the one in {there}, or another folder with --out")


@contextmanager
def _queue(out: Path) -> Generator[str]:
    """The address of the queue server, one of its own if none is named."""
    if url := os.environ.get(URL_VARIABLE):
        describe(url)
        yield url
        return
    with start(out / "queue") as server:
        yield server.url


class _Stop:
    is_set = False


@contextmanager
def _stopping() -> Generator[_Stop]:
    """Ctrl-C or SIGTERM: the first asks, the second ends at once, and the children with us."""
    stop = _Stop()

    def on_signal(number: int, _: object) -> None:
        if stop.is_set:
            os._exit(128 + number)
        stop.is_set = True
        print("stopping after the update under way; once more to stop at once", file=sys.stderr)

    before: Mapping[signal.Signals, object] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
