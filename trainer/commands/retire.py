"""`coevo retire BRANCH`: a mistaken head is made good. The branch goes on from an earlier revision.

The next revision gets the files of the one before the head, or of `--to N`; a running service makes it
(COEVO_SERVICE_URL). The mistaken revision stays under its number, for who names it: a teacher's steps, for instance.
Refused while a worker has the branch's lease, because its step continues the mistake.
"""

import argparse
import asyncio
import os

from adapters.errors import UserError
from adapters.manifest import Manifest
from adapters.names import Ref, check_branch
from clients.client import AsyncClient, RefusedError, ServiceError, from_environment

_WAIT_S = 10.0
"""For a service that may not be there: a person waits."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("branch", metavar="BRANCH", help="whose head is a mistake")
    parser.add_argument("--to", type=int, metavar="N", help="the revision to go back to [the one before the head]")


def run(arguments: argparse.Namespace) -> int:
    check_branch(arguments.branch)
    try:
        manifest = asyncio.run(_retire(arguments.branch, arguments.to))
    except ServiceError as error:
        raise UserError(str(error)) from None
    mistaken = Ref(manifest.branch, manifest.parent)
    print(f"{manifest.ref} has the files of {manifest.origin}; {mistaken} is no longer the head")
    if manifest.job:
        maker = manifest.job.partition(":")[0]
        print(f"the run {maker} counts {manifest.ref} as its step {manifest.revision}, and goes on from it")
    return 0


async def _retire(branch: str, to: int | None) -> Manifest:
    async with AsyncClient(**from_environment(os.environ)) as client:
        await client.wait_until_ready(_WAIT_S)
        branches = (await client.adapters()).branches
        if branch not in branches:
            raise UserError(f"{branch}: no such branch; there are {', '.join(sorted(branches)) or 'none'}")
        head, revisions = branches[branch].head, branches[branch].revisions
        earlier = [revision for revision in revisions if revision < head]
        if not earlier:
            raise UserError(f"{branch}@{head}: no revision lies before it; publish another one instead")
        if to is not None and to not in earlier:
            raise UserError(f"--to {to}: no revision before the head {head}; there are {', '.join(map(str, earlier))}")
        try:
            return await client.go_back(branch, max(earlier) if to is None else to, head=head)
        except RefusedError as error:
            if error.status is None:  # the service went away
                raise
            raise UserError(f"{branch}@{head}: {error.detail}") from None
