"""`coevo serve [RECIPE]`: the service, with a parent that starts it again when its engine dies.

A recipe gives the numbers that its run needs; flags and variables stand above it.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from adapters.errors import UserError
from service import logs
from service import settings as all_settings
from service.processes import tell_ready
from service.settings import Settings, read
from service.supervisor import ENGINE_DIED, supervise
from trainer.recipe.file import load
from trainer.recipe.serving import service_numbers

__all__ = ["add_arguments", "run"]

KEEP_ALIVE_S = 75  # longer than clients keep an idle connection, else one is closed while the next request is sent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="take the base and the numbers of it")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    all_settings.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)  # a wrong value is told before anything starts
    logs.set_up()
    command = [sys.executable, "-m", "service.command", *_as_flags(arguments)]
    if settings.port != 0 or settings.engine.data_parallel_start > 0:
        return supervise(command)
    # A free port is chosen here, so that a service that is started again is found where it was. The socket never
    # listens, so the service can; but it keeps the port from whoever asks for any, as the engine does while it starts.
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((settings.host, 0))
        return supervise([*command, f"--port={reserved.getsockname()[1]}"])


def _settings(arguments: argparse.Namespace) -> Settings:
    if arguments.recipe is None:
        if arguments.set:
            raise UserError("--set: there is no recipe to set it in; name one: coevo serve RECIPE --set ...")
        return read(vars(arguments), os.environ)
    return read(vars(arguments), os.environ, service_numbers(load(arguments.recipe, arguments.set)))


def _as_flags(arguments: argparse.Namespace) -> list[str]:
    """The recipe and the flags that were given, for the child. It inherits the variables."""
    parser = argparse.ArgumentParser()
    all_settings.add_arguments(parser)
    known = vars(parser.parse_args([]))
    given = {name: value for name, value in vars(arguments).items() if name in known and value is not None}
    recipe = [] if arguments.recipe is None else [str(arguments.recipe)]
    changes = [f"--set={change}" for change in arguments.set]
    return [*recipe, *changes, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def main(words: Sequence[str] | None = None) -> int:
    """The child: the service itself."""
    parser = argparse.ArgumentParser(prog="coevo serve")
    add_arguments(parser)
    try:
        settings = _settings(parser.parse_args(words))
        logs.set_up()
        return asyncio.run(_serve(settings)) if settings.engine.data_parallel_start == 0 else _serve_cores(settings)
    except UserError as error:
        print(f"coevo serve: {error}", file=sys.stderr)
        return 2


async def _serve(settings: Settings) -> int:
    # Not at the top: the parent lives without torch and everything else that the service needs.
    from service.app import build_app, open_state
    from service.health import watch
    from service.http.protocol import bounded

    began = time.monotonic()
    # The port first and the engine last: a port that is taken is told before the engine loads.
    with _listen(settings.host, settings.port, settings.send_timeout_s) as listener:
        print(f"coevo serve: loading {settings.base} ...", flush=True)
        engine = settings.engine
        if (local := engine.data_parallel_local or engine.data_parallel) < engine.data_parallel:
            address, port = engine.data_parallel_address, engine.data_parallel_port
            _listen(address, port, settings.send_timeout_s, "--data-parallel-port").close()  # vLLM says it later
            last = engine.data_parallel - 1
            print(f"coevo serve: cores {local} to {last} are to come to {address}:{port}", flush=True)
        async with open_state(settings) as state:
            app = build_app(state)
            logs.set_up()  # again, as vLLM and transformers are here now
            # Without a configuration of its own: its lines go the way of all others.
            http = bounded(settings.head_bytes)
            config = uvicorn.Config(app, http=http, log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE_S)
            server = _Server(config)

            def stop() -> None:
                state.runs.close()  # who follows a run would be waited for, and does not go by himself
                server.stop()

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            names = ", ".join(["base", *sorted(state.registry.heads), *sorted(state.registry.extras)])
            url = f"http://{settings.host}:{listener.getsockname()[1]}"
            print(f"coevo serve: {url} serves {names} after {time.monotonic() - began:.0f} s", flush=True)
            tell_ready()
            watching = asyncio.create_task(watch(state.engine, settings.frozen_s))
            await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                print(f"coevo serve: {watching.result()}", file=sys.stderr, flush=True)
                os._exit(ENGINE_DIED)  # what waits for the engine would wait for ever
            watching.cancel()
            await serving
    return 0


def _serve_cores(settings: Settings) -> int:
    """A host of engine cores alone. Whatever ends them, the parent starts them again, for the service's next life."""
    from adapters.base import locate
    from service.engine.vllm import serve_cores
    from service.health import PING_EVERY_S

    engine = settings.engine
    assert engine.data_parallel_local is not None
    last = engine.data_parallel_start + engine.data_parallel_local - 1
    numbers = f"{engine.data_parallel_start} to {last} of 0 to {engine.data_parallel - 1}"
    address = f"{engine.data_parallel_address}:{engine.data_parallel_port}"
    print(f"coevo serve: cores {numbers} for the service at {address}", flush=True)
    tell_ready()  # at once: while a core waits for the service it does what it should
    serve_cores(locate(settings.base), engine, settings.media, settings.frozen_s + PING_EVERY_S)
    return ENGINE_DIED


def _listen(host: str, port: int, send_timeout_s: float, flag: str = "--port") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
        # Accepted sockets inherit it. asyncio sets it only on those that name TCP, and these do not: an answer in two
        # pieces would wait 40 ms for the caller's acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A connection that is closed waits until its peer has read the rest, for ever if need be. Here it does not.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
        return listener
    except OSError as error:
        raise UserError(
            f"{flag} {port}: cannot listen on {host} ({os.strerror(error.errno or 0)}); choose another"
        ) from None


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again at its end, before the engine's processes are ended."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def stop(self) -> None:
        """The second time without waiting for requests."""
        self.force_exit = self.should_exit
        self.should_exit = True


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # vLLM's client would end itself once more, among modules that are gone
