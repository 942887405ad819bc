"""`coevo run RECIPE`: a whole run on this machine, from one command.

Queue server (unless COEVO_REDIS_URL names one), service, worker and coordinator as child processes; everything they
keep lies in one folder:

    DIR/recipe.json      what is computed            DIR/runs/ID/events.jsonl   what happened
    DIR/store/           every revision              DIR/runs/ID/rollouts/      what each step learnt from
    DIR/queue/           the queue server's files    DIR/logs/                  what the processes said

Ctrl-C stops after the update under way and says how to go on. Left out: what is shown (`console`), and who restarts a
service whose engine died (it does itself).
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapters.errors import UserError
from adapters.family import dying_with_us
from trainer.console import Console
from trainer.coordinator import run_id
from trainer.queue_server import URL_VARIABLE, describe, start
from trainer.recipe import Recipe
from trainer.recipe.file import load, write_resolved
from trainer.systems import plan

COORDINATOR, SERVICE = "coordinator", "service"
_LOOK_S = 0.2
_STOP_WITHIN_S = 120.0
_SERVICE_WITHIN_S = 1800.0
"""A large base is read and compiled before the service answers."""
_RESTARTS = 5
_AGAIN = frozenset({69, 70})
"""Exit status of a worker that is worth another start."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything lies [out/NAME]")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    parser.add_argument("--worker-each", action="store_true", help="a worker for each branch instead of one for all")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the service [any free one]")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    out = arguments.out or Path("out") / recipe.name
    _check_folder(out, recipe, resume=arguments.resume)
    write_resolved(recipe, out)
    branches = [start.branch for start in plan(recipe).starts]
    workers = [[branch] for branch in branches] if arguments.worker_each else [["all"]]
    with _stopping() as stop, ExitStack() as stack:
        environ = {URL_VARIABLE: stack.enter_context(_queue(out)), "OMP_NUM_THREADS": "1"}
        children = stack.enter_context(_Children(out / "logs", environ))
        url = _start_service(children, recipe, out, arguments.port, stop)
        if url is not None:
            children.environ["COEVO_SERVICE_URL"] = url
            children.start(COORDINATOR, "-m", "clients.cli", "coordinate", str(out / "recipe.json"))
            for names in workers:
                words = [word for name in names for word in ("--branch", name)]
                name = f"worker-{names[0]}"
                children.start(name, "-m", "trainer.worker", *words, "--name", f"{out.resolve().name}-{names[0]}")
            with Console(recipe, out / "runs" / run_id(recipe) / "events.jsonl", url) as console:
                while not stop.is_set and children.is_running(COORDINATOR):
                    children.look_after()
                    console.look()
                    time.sleep(_LOOK_S)
                console.look()
        finished = children.status(COORDINATOR) == 0 and not stop.is_set
        children.stop()
    if finished:
        print(f"{run_id(recipe)} is finished; {out / 'store'} has every revision, {out / 'runs'} what happened")
        return 0
    changes = "".join(f" --set {one}" for one in arguments.set)
    print(f"stopped; to go on: coevo run {arguments.recipe}{changes} --out {out} --resume")
    return 130


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


def _start_service(children: "_Children", recipe: Recipe, out: Path, port: int, stop: "_Stop") -> str | None:
    """Its address, when it answers. None: told to stop before."""
    children.start(
        SERVICE, "-m", "clients.cli", "serve", str(out / "recipe.json"),
        f"--store={out / 'store'}", f"--runs={out / 'runs'}", f"--port={port}",
    )  # fmt: skip
    deadline = time.monotonic() + _SERVICE_WITHIN_S
    while not stop.is_set:
        if found := re.search(r"coevo serve: (http://\S+) serves", children.log(SERVICE)):
            return found[1]
        if not children.is_running(SERVICE) or time.monotonic() > deadline:
            raise UserError(children.last_words(SERVICE))
        time.sleep(_LOOK_S)
    return None


@dataclass(eq=False, slots=True)
class _Child:
    words: Sequence[str]
    process: subprocess.Popen[bytes]
    log: Path
    begin: int
    """Of this life in the log."""
    restarts: int = 0


@dataclass(eq=False, slots=True)
class _Children:
    """Processes with a log each, in sessions of their own: Ctrl-C reaches them through here."""

    folder: Path
    environ: dict[str, str]
    _children: dict[str, _Child] = field(default_factory=dict[str, _Child])

    def __enter__(self) -> "_Children":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, *words: str) -> None:
        path = self.folder / f"{name}.log"
        with path.open("a") as log:
            begin = log.tell()
            process = subprocess.Popen(
                dying_with_us([sys.executable, *words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environ,
                start_new_session=True,
            )
        before = self._children.get(name)
        self._children[name] = _Child(words, process, path, begin, 0 if before is None else before.restarts + 1)

    def log(self, name: str) -> str:
        return self._children[name].log.read_text()[self._children[name].begin :]

    def is_running(self, name: str) -> bool:
        return self._children[name].process.poll() is None

    def status(self, name: str) -> int | None:
        child = self._children.get(name)
        return None if child is None else child.process.poll()

    def last_words(self, name: str) -> str:
        lines = self.log(name).strip().splitlines()
        said = lines[-1] if lines else f"it ended with status {self.status(name)}"
        return f"the {name} did not go on: {said} ({self._children[name].log})"

    def look_after(self) -> None:
        """Starts workers again that died; what cannot go on ends the run."""
        for name, child in list(self._children.items()):
            status = child.process.poll()
            if status is None or status == 0:
                continue
            is_worker = name not in (COORDINATOR, SERVICE)
            if is_worker and (status in _AGAIN or status < 0) and child.restarts < _RESTARTS:
                self.start(name, *child.words)
            else:
                raise UserError(self.last_words(name))

    def stop(self) -> None:
        """Workers first, they hand over; the service last, it takes what they publish."""
        for name in sorted(self._children, key=lambda name: (name == SERVICE, name == COORDINATOR)):
            process = self._children[name].process
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_WITHIN_S)
            process.kill()
            process.wait()
        self._children = {name: child for name, child in self._children.items() if name == COORDINATOR}


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
