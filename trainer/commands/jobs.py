"""`coevo jobs`: what is queued, who works on it, what failed for good; `retry BRANCH` gives that another go."""

import argparse
import os

from adapters.errors import UserError
from trainer.queue.client import Queue
from trainer.queue.server import url_from_environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "retry"), default="list")
    parser.add_argument("branch", nargs="?", help="whose failed job to try again")


def run(arguments: argparse.Namespace) -> int:
    queue = Queue(url_from_environment(os.environ))
    return _retry(queue, arguments.branch) if arguments.action == "retry" else _list(queue)


def _list(queue: Queue) -> int:
    heads, failed = queue.heads(), {job.branch: job for job in queue.dead()}
    print("branch\thead\tjob\tworker\tattempts")
    for branch, waiting in sorted(queue.waiting(heads).items()):
        job = waiting.jobs[0].id if waiting.jobs else "-"
        print(f"{branch}\t{heads[branch]}\t{job}\t{waiting.worker or '-'}\t{waiting.attempts}")
    for branch, job in sorted(failed.items()):
        print(f"failed for good: {job.job}: {job.error}\n  mend that, then: coevo jobs retry {branch}")
    return 0


def _retry(queue: Queue, branch: str | None) -> int:
    failed = [job.branch for job in queue.dead()]
    if branch not in failed:
        names = ", ".join(failed)
        raise UserError(f"{branch}: no job of it has failed for good; {f'{names} has' if failed else 'none has'}")
    queue.retry(branch)
    print(f"{branch}: tried again")
    return 0
