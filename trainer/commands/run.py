"""`coevo run RECIPE`: a whole run on this machine, from one command.

Queue server (unless COEVO_REDIS_URL names one), service, worker and coordinator as child processes; everything they
keep lies in one folder:

    DIR/recipe.json      what is computed            DIR/runs/ID/events.jsonl   what happened
    DIR/store/           every revision              DIR/runs/ID/rollouts/      what each step learnt from
    DIR/queue/           the queue server's files    DIR/logs/                  what the processes said
    DIR/merged/          the merged model            DIR/results.json           the accuracy of every model

Ctrl-C stops after the update under way and says how to go on. With `--on ray` the processes lie on the nodes of a
cluster. Left out: how the steps are made (`train`), what a run ends with (`finish`), what is shown meanwhile
(`console`), and who restarts a service whose engine died (it does).
"""

import argparse
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.errors import UserError
from adapters.names import MERGED
from service.concurrency import Stopped
from trainer.commands.base import make_at_first_use
from trainer.commands.check import add_unchecked, check, is_refused
from trainer.local.examiner import ADAPTER
from trainer.local.launching import Launch, launch_here
from trainer.local.on_ray import check_installed, is_joined, ray_cluster, until_made
from trainer.local.train import check_folder, events_of, is_trained, run_processes, settings_of, train
from trainer.local.workers import local_workers
from trainer.plan.make import make_plan
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load, run_id
from trainer.reporting.curves import curves
from trainer.reporting.events import overlap_lines, read_events
from trainer.reporting.tables import show

if TYPE_CHECKING:
    from trainer.local.finish import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything lies [out/NAME]")
    parser.add_argument("--resume", action="store_true", help="go on with what is there")
    add_unchecked(parser)
    parser.add_argument("--worker-each", action="store_true", help="a worker for each branch instead of one for all")
    parser.add_argument("--on", choices=("here", "ray"), default="here", help="ray: on the nodes of a Ray cluster")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the service [any free one]")


def run(arguments: argparse.Namespace) -> int:
    recipe = load(arguments.recipe, arguments.set)
    if recipe.comparison is not None:
        raise UserError(f"{arguments.recipe}: compares systems; take coevo compare")
    if arguments.on == "ray":
        check_installed()
    out = arguments.out or Path("out") / recipe.name
    check_folder(out, recipe, resume=arguments.resume)
    if not is_trained(out, recipe):
        make_at_first_use(recipe.base.name)
        print("checking the recipe, its data and this machine", flush=True)
        facts = check(recipe, out)
        if arguments.on == "ray" and is_joined():  # other machines have the memory
            facts = [fact for fact in facts if not fact.subject.endswith(" fits")]
        if is_refused("run", arguments, facts):
            return 2
    try:
        outcome = (make_on_ray if arguments.on == "ray" else make)(recipe, out, arguments)
    except Stopped:
        words = [str(arguments.recipe), *settings_of(arguments.set), "--out", str(out), "--resume"]
        words += ["--on", "ray"] if arguments.on == "ray" else []
        print(f"stopped; to go on: coevo run {shlex.join(words)}")
        return 130
    tell_end(recipe, out, outcome)
    return 0


def tell_end(recipe: Recipe, out: Path, outcome: "Outcome") -> None:
    """The accuracy of every model, what lies in the folder, and what can be done with it."""
    show(recipe.name, outcome.results, outcome.means)
    events = events_of(out, recipe)
    for line in overlap_lines(read_events(events)):
        print(line)
    curves(read_events(events), out / "curves.png")
    print(f"{run_id(recipe)} is finished; in {out}:")
    contents = {
        "results.json": "the table",
        "items.jsonl": "every answer",
        "store": "every revision",
        "curves.png": "what happened on the way",
        MERGED: "the merged model",
        ADAPTER: "the same as an adapter",
    }
    for name, gloss in contents.items():
        if (out / name).exists():
            print(f"  {name:<15} {gloss}")
    print("next:")
    for words in next_commands(out, recipe):
        print(f"  {shlex.join(words)}")


def make(recipe: Recipe, out: Path, arguments: argparse.Namespace, launch: Launch = launch_here) -> "Outcome":
    # Training and the exam in one block: the queue server and Ctrl-C are the same for both.
    with run_processes(out, recipe, launch) as processes:
        if not is_trained(out, recipe):
            train(recipe, out, processes, worker_each=arguments.worker_each, port=arguments.port)
        # Not at the top: it imports torch, and this process needs none until the merge.
        from trainer.local.finish import finish

        return finish(recipe, out, processes)


def make_on_ray(recipe: Recipe, out: Path, arguments: argparse.Namespace) -> "Outcome":
    branches = [start.branch for start in make_plan(recipe).starts]
    workers = local_workers(out.resolve().name, branches, each=arguments.worker_each)
    with ray_cluster(recipe, [worker.process for worker in workers]) as cluster:
        return until_made(partial(make, recipe, out, arguments, cluster.launch), events_of(out, recipe))


def next_commands(out: Path, recipe: Recipe) -> Iterator[list[str]]:
    """What a person does with a finished run."""
    plan = make_plan(recipe)
    branch = plan.starts[0].branch
    yield ["coevo", "look", str(out)]
    yield ["coevo", "rollouts", str(events_of(out, recipe).parent), branch, str(plan.head(branch))]
    if (out / MERGED).exists():
        yield ["coevo", "merge", str(out), "--scale", "auto", "--out", str(out.with_name(f"{out.name}-merged"))]
    yield ["coevo", "serve", str(out / "recipe.json"), "--store", str(out / "store")]
