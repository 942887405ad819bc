"""The steps of a plan, all made on this machine: queue server, service, workers and coordinator as child processes."""

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from trainer.local.launching import Launch, launch_here
from trainer.local.processes import COORDINATOR, LOOK_S, QUEUE, SERVICE, ProcessGroup, QueueServer
from trainer.local.workers import FrozenWorkers, check_jobs, local_workers
from trainer.plan.make import make_plan
from trainer.queue.client import Queue, QueueAwayError, redacted
from trainer.queue.server import PASSWORD_VARIABLE, URL_VARIABLE, describe
from trainer.recipe import Recipe
from trainer.recipe.file import load, run_id, write_resolved
from trainer.reporting.console import Console
from trainer.reporting.curves import curves
from trainer.reporting.events import read_events

WORKS = " works for "
"""In a worker's log: it has all that its steps need."""

STOPPED = "stopped; started again"
"""In a coordinator's log: it ended before its run."""


def settings_of(changes: Sequence[str]) -> list[str]:
    """The words of a command line that make these changes to a recipe."""
    return [word for change in changes for word in ("--set", change)]


def check_folder(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Refuses a folder that is neither new nor this run's own."""
    path = out / "recipe.json"
    if not path.exists():
        return
    if not resume:
        raise UserError(f"{out}: holds a run; add --resume to go on with it, or take another folder with --out")
    if run_id(load(path)) != run_id(recipe):
        raise UserError(f"{out}: holds a run of another recipe; give the one in {path}, or another folder with --out")


@contextmanager
def run_processes(out: Path, recipe: Recipe, launch: Launch = launch_here) -> Generator[ProcessGroup]:
    """A queue server, and a group for the other processes; none of them outlives the block. `launch` starts all of
    them elsewhere."""
    if recipe.worker.shard:
        raise UserError(
            "worker.shard: this command starts workers of one process; start a worker by torchrun (docs/scale.md), or "
            "add --set worker.shard=false"
        )
    with ExitStack() as stack:
        is_stopped, queue = stack.enter_context(stop_signals()), None
        if url := os.environ.get(URL_VARIABLE):
            describe(url)  # a server that does not answer is told before anything starts
        elif launch is not launch_here:
            url = ""  # known when it has come to a node
        else:
            queue = stack.enter_context(QueueServer(out / "queue"))
            url = queue.url
        # Threads of several processes that wait for each other on the same cores are slower than one.
        environ = {URL_VARIABLE: url, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        with ProcessGroup(out / "logs", environ, is_stopped, queue, launch) as processes:
            if not url:
                password = secrets.token_hex()
                words = ("-m", "trainer.queue.server", str(out / "queue"))
                processes.start(QUEUE, *words, **{PASSWORD_VARIABLE: password})
                address = processes.address(QUEUE, r"queue server: redis://(\S+)")
                url = processes.environ[URL_VARIABLE] = f"redis://:{password}@{address}"
            print(f"{QUEUE}: {redacted(url)}", flush=True)
            # Once the queue server has locked the folder: else processes of another run there would read this recipe.
            write_resolved(recipe, out)
            yield processes


@contextmanager
def stop_signals() -> Generator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM: the first asks to stop, the second ends at once, and the processes with us."""
    signals = 0

    def on_signal(number: int, _: object) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            os._exit(128 + number)  # without any clean-up: that is what is asked for; the processes die with us
        print("stopping after the update under way; once more to stop at once", file=sys.stderr)

    handlers: dict[signal.Signals, Any] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: signals > 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def train(recipe: Recipe, out: Path, processes: ProcessGroup, *, worker_each: bool = False, port: int = 0) -> None:
    """Makes all steps of the plan."""
    branches = [start.branch for start in make_plan(recipe).starts]
    workers = local_workers(out.resolve().name, branches, each=worker_each)
    flags = [f"--store={out / 'store'}", f"--runs={out / 'runs'}", f"--port={port}"]
    resolved, queue = str(out / "recipe.json"), Queue(processes.environ[URL_VARIABLE])
    for job in queue.dead():  # who goes on with a run has mended what failed, or it fails again
        queue.retry(job.branch)
    url = processes.serve(SERVICE, resolved, *flags)
    processes.environ["COEVO_SERVICE_URL"] = url
    print(f"page: {url}/ shows the run in a browser, now and with `coevo look {out}` later", flush=True)
    began = time.monotonic()
    processes.start(COORDINATOR, "-m", "clients.cli", "coordinate", resolved, f"--tracking={out / 'runs'}")
    for worker in workers:
        processes.start(worker.process, "-m", "trainer.worker", "--branch", worker.word, "--name", worker.name)
    starting, frozen = [worker.process for worker in workers], FrozenWorkers(workers)
    print(f"{', '.join(starting)}: starting, with the data and a copy of the base", flush=True)
    cycle_steps, drawn_cycles = recipe.method.rlvr_steps + recipe.method.opd_steps, 0
    with Console(recipe, events_of(out, recipe), url) as console:
        # Not `is_running`: a coordinator that was killed is started again below.
        while not processes.is_stopped() and processes.status(COORDINATOR) != 0:
            num_steps = sum(console.heads().values())
            processes.restart_dead()
            for name in [name for name in starting if WORKS in processes.log(name)]:
                starting.remove(name)
                print(f"{name}: at work after {time.monotonic() - began:.0f} s", flush=True)
            with suppress(QueueAwayError):
                check_jobs(queue.dead(), workers, processes.folder)
                for worker in frozen.look(queue.waiting(branches)):
                    if WORKS in processes.log(worker.process):  # else it is still loading
                        print(f"{worker.process}: has work and does not take it; ending it", flush=True)
                        processes.kill(worker.process)
            console.look()
            if sum(console.heads().values()) > num_steps:
                processes.progressed()
                if (cycles := min(console.heads().values()) // max(1, cycle_steps)) > drawn_cycles:
                    drawn_cycles = cycles  # drawn on the way: a long run is looked at long before its end
                    curves(read_events(events_of(out, recipe)), out / "curves.png")
            time.sleep(LOOK_S)
        console.look()  # at the events that came with the end
    processes.check_stop()
    if STOPPED in processes.log(COORDINATOR):  # by somebody else: its status is that of a run that is done
        raise UserError(f"the coordinator was told to stop ({processes.folder}/{COORDINATOR}.log); go on with --resume")
    processes.stop()


def is_trained(out: Path, recipe: Recipe) -> bool:
    """The coordinator has said so, after the last step and the last measurement of all the plan's branches."""
    plan = make_plan(recipe)
    ends = {start.branch: plan.head(start.branch) for start in plan.starts}
    # The branches too: the seeds of a comparison are one run, which finishes with other branches each time.
    events = [event for event in read_events(events_of(out, recipe)) if event["kind"] == "run"]
    return any(event["state"] == "finished" and event["branches"] == ends for event in events)


def events_of(out: Path, recipe: Recipe) -> Path:
    return out / "runs" / run_id(recipe) / "events.jsonl"
