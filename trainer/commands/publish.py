"""`coevo publish DIR BRANCH`: an adapter that PEFT saved, TRL's for instance, as the next revision of a branch.

It goes to a running service (COEVO_SERVICE_URL), which checks it. A branch that is not there begins at the base. The
same files again are no second revision. Prints the revision and the digest of its files.
"""

import argparse
import asyncio
import os
from pathlib import Path

from adapters.errors import UserError
from adapters.manifest import ADAPTER_FILES, Manifest, folder_digest
from adapters.names import check_branch
from clients.client import AsyncClient, RefusedError, ServiceError, from_environment

_WAIT_S = 10.0
"""For a service that may not be there: a person waits. The upload itself has the client's ten minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="with adapter_config.json and its weights")
    parser.add_argument("branch", metavar="BRANCH", help="a new one, or one that it continues")
    parser.add_argument("--revision", type=int, metavar="N", help="the number that it gets [the head's + 1]")
    parser.add_argument("--parent", type=int, metavar="N", help="refuse it unless this is the head [any head]")


def run(arguments: argparse.Namespace) -> int:
    folder: Path = arguments.folder
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: no {' and no '.join(missing)} here; name a folder as PEFT's save_pretrained makes")
    check_branch(arguments.branch)
    for name in ("revision", "parent"):
        if (getattr(arguments, name) or 0) < 0:
            raise UserError(f"--{name} {getattr(arguments, name)}: no revision; take a number from 0, or leave it out")
    try:
        manifest = asyncio.run(_publish(folder, arguments.branch, arguments.revision, arguments.parent))
    except ServiceError as error:
        raise UserError(str(error)) from None
    print(f"{manifest.ref} {manifest.digest}")
    return 0


async def _publish(folder: Path, branch: str, revision: int | None, parent: int | None) -> Manifest:
    async with AsyncClient(**from_environment(os.environ)) as client:
        await client.wait_until_ready(_WAIT_S)
        branches = (await client.adapters()).branches
        if revision is None:
            head = branches[branch].head if branch in branches else 0
            is_there = branch in branches and branches[branch].digest == folder_digest(folder)
            revision = head if is_there else head + 1  # what the head has already is answered with the head
        try:
            return await client.publish(branch, revision, folder, parent=parent)
        except RefusedError as error:
            if error.status is None:  # the service was not there: nothing is wrong with the folder
                raise
            raise UserError(f"{folder}: {error.detail}") from None
