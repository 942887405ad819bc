"""`coevo look FOLDER|URL`: a run in the browser, to read: of a folder that `coevo run` made, or of a running service.

Of a folder no engine is started, so it takes a second and needs no base; a run that is still going on is followed. Of
an address the page is this package's own, and COEVO_API_KEY goes with each question.
"""

import argparse
import json
import os
import socket
from pathlib import Path

from adapters.errors import UserError
from service.runs import EVENTS

HOST = "127.0.0.1"
"""Nobody else's browser: a folder is looked at without a key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a folder of `coevo run`, or the address of a service")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="where the page is served [any free one]")


def run(arguments: argparse.Namespace) -> int:
    import uvicorn  # with the routes a second, which help needs not

    from service.http.auth import HostCheck
    from service.look import folder_app, remote_app

    if arguments.run.startswith(("http://", "https://")):
        app, label = remote_app(arguments.run.rstrip("/"), os.environ.get("COEVO_API_KEY")), arguments.run
    else:
        folder = Path(arguments.run)
        if not any((folder / "runs").glob(f"*/{EVENTS}")):
            raise UserError(f"{folder}: no run in it; name a folder of coevo run, such as out/demo-0, or a URL")
        recipe = folder / "recipe.json"
        # Its base alone, and not the whole recipe: a run of an older version is looked at, too.
        base = json.loads(recipe.read_bytes())["base"]["name"] if recipe.is_file() else None
        app, label = folder_app(folder, base), str(folder)
    try:
        listener = socket.create_server((HOST, arguments.port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(f"--port {arguments.port}: cannot listen there ({reason}); choose another") from None
    print(f"{label}: http://{HOST}:{listener.getsockname()[1]}/  (read-only; Ctrl-C ends it)", flush=True)
    # A page from elsewhere may have its name lead here: it would read what only this machine may.
    guarded = HostCheck(app, frozenset({HOST, "localhost"}))
    # Browsers follow a run for as long as they are open: they are not waited for.
    config = uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
    return 0
