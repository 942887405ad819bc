"""A run's processes on the nodes of a Ray cluster: `coevo run RECIPE --on ray`.

Each process is the child of an actor, and dies with it. A placement group has a bundle for each: when a node is lost,
Ray looks for room elsewhere and waits until there is some, and the run makes a new actor for what was there. The
cluster is that of `RAY_ADDRESS`, or one on this machine for as long as the run.

The folder of the run lies on a file system that all nodes share. The queue server has a password of its own. Left out:
the service's key, which is COEVO_API_KEY as ever, and Ray's own token.
"""

import asyncio
import importlib.util
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adapters.errors import UserError
from trainer.local.launching import LOST, LostError, launch_here
from trainer.local.processes import COORDINATOR, QUEUE, RESTARTS, SERVICE
from trainer.queue.server import LOOPBACK
from trainer.recipe import Recipe
from trainer.reporting.events import read_events

Made = TypeVar("Made")

ADDRESS_VARIABLE = "RAY_ADDRESS"
_HOST_VARIABLE = "COEVO_HOST"
_PASSED_ON = ("COEVO_", "HF_", "OTEL_", "VLLM_")
"""Variables of the run's own process that its children get, wherever they are. Others are their node's."""
_MISTAKE = 2
_SMALL_CPUS = 0.1
"""What a queue server and a coordinator take of a core."""
_OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster that is started here: about the least that Ray takes. Nothing of a run lies in it."""
_ANSWER_S = 10.0
"""For a message there and back; one that takes longer in a full cluster costs its process the time to hand over."""
_STILL_S = 60.0
"""Between two lines while the cluster has no room."""


class Keeper:
    """The actor: the parent of a process."""

    def __init__(self, host: str | None) -> None:
        self._host = host
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: signal.Signals | None = None

    # A coroutine, so that `signal` is answered meanwhile. All of them run in one thread, which lives as long as the
    # actor does: the child is told of the end of the thread that started it.
    async def keep(
        self, words: Sequence[str], environ: Mapping[str, str], log: Path, folder: Path, death: signal.Signals
    ) -> int:
        """Starts it and waits for its end; its exit status."""
        host = self._host or node_address()
        if not (log.exists() and folder.is_dir()):
            raise UserError(
                f"--on ray: node {host} does not see {log if folder.is_dir() else folder}; start from a folder, and "
                "give one with --out, that all nodes share"
            )
        if self._signal is not None:
            return -self._signal
        os.chdir(folder)  # paths on the command line were given there
        self._child = launch_here("", words, {_HOST_VARIABLE: host, **environ}, log, death)
        return await asyncio.to_thread(self._child.wait)

    async def signal(self, number: signal.Signals) -> None:
        """To the child, or instead of it: in an actor that has just come up Ray may begin with the later call."""
        self._signal = number
        if self._child is not None:
            self._child.send_signal(number)


def node_address() -> str:
    import ray.util

    return ray.util.get_node_ip_address()


class KeptChild:
    """The child of an actor, as a `launching.Child`."""

    def __init__(self, actor: Any, ended: Any, log: Path) -> None:
        self._actor, self._ended, self._log = actor, ended, log
        self._status: int | None = None

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        import ray
        from ray.exceptions import RayError, RayTaskError

        if self._status is not None:
            return self._status
        if not ray.wait([self._ended], timeout=timeout)[0]:
            raise subprocess.TimeoutExpired("a process on a node", timeout or 0)
        try:
            self._status = int(ray.get(self._ended))
        except UserError as error:  # of the actor; Ray gives it a cause and a traceback
            self._say(f"coevo run: {getattr(error, 'cause', error)}")
            self._status = _MISTAKE
        except RayTaskError:
            raise
        except RayError as error:  # its node, its actor, or Ray's own watch over the memory
            self._say(_why(error))
            self.kill()  # one that only is out of reach would come back beside its successor
            self._status = LOST
        return self._status

    def _say(self, line: str) -> None:
        with self._log.open("a") as log:
            print(line, file=log)

    def terminate(self) -> None:
        import ray

        # An actor that does not answer waits for room, and may do so for ever: nothing of it has begun.
        if not ray.wait([self._actor.signal.remote(signal.SIGTERM)], timeout=_ANSWER_S)[0]:
            self.kill()

    def kill(self) -> None:
        """With its actor, so one that waits for room ends as well."""
        import ray

        ray.kill(self._actor)


@dataclass(frozen=True, slots=True)
class RayCluster:
    """The room that a run has in a cluster."""

    host: str | None
    """Where everything listens; None: at its node's address."""
    group: Any
    bundles: Mapping[str, Mapping[str, float]]
    """What each process takes, by name, as the placement group has it."""

    def launch(
        self, name: str, words: Sequence[str], environ: Mapping[str, str], log: Path, death: signal.Signals
    ) -> KeptChild:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = self.bundles[name]
        strategy = PlacementGroupSchedulingStrategy(self.group, list(self.bundles).index(name))
        remote: Any = ray.remote(Keeper)
        options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "scheduling_strategy": strategy}
        actor = remote.options(**options).remote(self.host)
        passed_on = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
        ended = actor.keep.remote(list(words), passed_on | dict(environ), log, Path.cwd(), death)
        return KeptChild(actor, ended, log)


def check_installed() -> None:
    if importlib.util.find_spec("ray") is None:
        raise UserError("--on ray: Ray is not installed; pip install 'coevo[ray]'")


def is_joined() -> bool:
    """Whether there is a cluster already; else one is started on this machine."""
    return bool(os.environ.get(ADDRESS_VARIABLE))


def until_made(make: Callable[[], Made], events: Path) -> Made:
    """What `make` gives. It is called again when a node is lost with something whose address the others have: then all
    of them begin again with what is in the run's folder."""
    reached, losses = -1, 0
    while True:
        try:
            return make()
        except LostError as error:
            steps = sum(event["kind"] == "step" for event in read_events(events))
            losses = losses + 1 if steps == reached else 1
            reached = steps
            if losses > RESTARTS:
                raise UserError(f"{error}; {RESTARTS} new beginnings brought no step; add --resume later") from None
            print(f"{error}; all processes begin again with what is there", flush=True)


@contextmanager
def ray_cluster(recipe: Recipe, workers: Sequence[str]) -> Generator[RayCluster]:
    """Joins the cluster, or starts one, and waits for room in it."""
    # It would print pages of a lost node's last moments into the run's lines; read when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray
    from ray.util import placement_group, remove_placement_group

    host = _join(len(workers))
    try:
        bundles = _bundles(recipe, workers, has_cards=host is None and ray.cluster_resources().get("GPU", 0) > 0)
        group = placement_group([dict(bundle) for bundle in bundles.values()])
        try:
            wanted = {kind: sum(bundle.get(kind, 0) for bundle in bundles.values()) for kind in ("CPU", "GPU")}
            while not group.wait(_STILL_S):
                free = ray.available_resources()
                room = ", ".join(
                    f"{kind} {free.get(kind, 0):g} of {count:g}" for kind, count in wanted.items() if count
                )
                print(f"ray: waits for room; free: {room}", flush=True)
            yield RayCluster(host, group, bundles)
        finally:
            remove_placement_group(group)
    finally:
        ray.shutdown()


def _join(num_workers: int) -> str | None:
    """Joins the cluster, or starts one on this machine; where everything listens then."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not is_joined():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody has asked whether it may tell
        # As `coevo run` on this machine: as many cores as the run takes, all see the cards that there are, and none is
        # nicer to other programs than usual, by 15 in Ray, nor ended because those take the memory.
        for name in ("ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "worker_niceness", "memory_monitor_refresh_ms"):
            os.environ[f"RAY_{name}"] = "0"
        room: dict[str, Any] = {"num_cpus": num_workers + 2, "object_store_memory": _OBJECT_STORE_BYTES}
        try:
            ray.init(address="local", include_dashboard=False, **room, **quiet)
        except Exception as error:  # what it raises when its own processes take too long
            raise UserError(f"--on ray: Ray did not start here ({_first_line(error)}); try again") from None
        return LOOPBACK
    address = os.environ[ADDRESS_VARIABLE]
    if address.startswith("ray://"):
        raise UserError(f"{ADDRESS_VARIABLE}={address}: give HOST:PORT, and start the run on a node of the cluster")
    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal():  # Ray would try for minutes, and say so every few seconds
            socket.create_connection((host, int(port)), _ANSWER_S).close()
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{ADDRESS_VARIABLE}={address}: no cluster that can be used ({_first_line(error)}); mend it, or unset it "
            "for a cluster on this machine"
        ) from None
    return None


def _why(error: Exception) -> str:
    """What Ray says of an actor's end, without its advice of a page."""
    text = str(error)
    reason = re.search(r"The actor (?:is dead|died) because ([^.\n]+)", text) or re.search(r"([^.\n]+)", text)
    return reason[1] if reason else type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _bundles(recipe: Recipe, workers: Sequence[str], *, has_cards: bool) -> dict[str, dict[str, float]]:
    cards = recipe.engine.data_parallel * recipe.engine.tensor_parallel
    with_cards = {SERVICE: cards} | dict.fromkeys(workers, 1)
    bundles = {QUEUE: {"CPU": _SMALL_CPUS}, COORDINATOR: {"CPU": _SMALL_CPUS}}
    for name, count in with_cards.items():
        bundles[name] = {"CPU": 1.0, "GPU": float(count)} if has_cards else {"CPU": 1.0}
    return bundles
