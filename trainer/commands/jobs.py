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
    failed = {job.branch: job for job in queue.dead()}
    if arguments.action == "retry":
        if arguments.branch not in failed:
            jobs = f"{', '.join(failed)} has" if failed else "none has"
            raise UserError(f"{arguments.branch}: no job of it has failed for good; {jobs}")
        queue.retry(arguments.branch)
        print(f"{arguments.branch}: tried again")
        return 0
    heads = queue.heads()  # every branch of the store, whether it has jobs or not
    print("branch\thead\tjob\tworker\tattempts")
    for branch, waiting in sorted(queue.waiting(heads).items()):
        job = waiting.jobs[0].id if waiting.jobs else "-"
        print(f"{branch}\t{heads[branch]}\t{job}\t{waiting.worker or '-'}\t{waiting.attempts}")
    for branch, job in sorted(failed.items()):
        print(f"failed for good: {job.job}: {job.error}\n  mend that, then: coevo jobs retry {branch}")
    return 0
