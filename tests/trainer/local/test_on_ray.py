"""Real little processes on a real cluster of Ray, with nodes that are taken away and added: all on this machine."""

import asyncio
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from adapters.errors import UserError
from clients.cli import main
from tests.faults.recipes import small
from tests.raynodes import LEFT_BEHIND, ROOM, nodes_by_raylet, three_nodes
from trainer.local.launching import LOST, LostError
from trainer.local.on_ray import Keeper, ray_cluster, until_made
from trainer.local.processes import QUEUE, RESTARTS, SERVICE, ProcessGroup

pytestmark = [pytest.mark.reference, pytest.mark.timeout(600), LEFT_BEHIND]
WORKER = "worker-all"
LIVING = """
import os, time
said = {"process": os.getpid(), "raylet": os.environ["RAY_RAYLET_PID"], "host": os.environ["COEVO_HOST"]}
print(*(f"{key}={value}" for key, value in said.items()), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with three_nodes() as cluster:
        yield cluster


@pytest.fixture
def group(cluster: Cluster, tmp_path: Path) -> Iterator[ProcessGroup]:
    """Three processes, one on each node."""
    with (
        ray_cluster(small(), [WORKER]) as room,
        ProcessGroup(tmp_path / "logs", {"OF_GROUP": "1"}, launch=room.launch) as group,
    ):
        for name in (QUEUE, SERVICE, WORKER):
            group.start(name, "-c", LIVING)
        yield group


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def said(group: ProcessGroup, name: str, key: str) -> str:
    """What a process has said of itself."""
    wait_until(lambda: group.log(name).endswith("\n"))
    return dict(word.split("=") for word in group.log(name).split())[key]


def child_of(group: ProcessGroup, name: str) -> psutil.Process:
    return psutil.Process(int(said(group, name, "process")))


def kill_actor_of(child: psutil.Process) -> None:
    actor = child.parent()
    assert actor is not None
    actor.kill()


def take_node_of(cluster: Cluster, group: ProcessGroup, name: str) -> None:
    node = nodes_by_raylet(cluster)[int(said(group, name, "raylet"))]
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.soak
def test_a_worker_of_a_lost_node_comes_back_on_the_next(
    cluster: Cluster, group: ProcessGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    first, service = child_of(group, WORKER), child_of(group, SERVICE)
    assert first.environ()["OF_GROUP"] == "1"
    assert said(group, WORKER, "host") != "127.0.0.1"
    take_node_of(cluster, group, WORKER)
    wait_until(lambda: group.status(WORKER) == LOST)
    wait_until(lambda: not first.is_running())
    group.restart_dead()
    # Ray says in one of several ways why.
    assert re.search(r"^worker-all: lost with its actor: .+; starting it again$", capsys.readouterr().out, re.MULTILINE)
    assert group.is_running(WORKER)  # it waits for room
    cluster.add_node(**ROOM)
    # An actor that was placed before Ray had seen the loss is lost as well. A run starts another at its next look.
    wait_until(lambda: bool(group.restart_dead()) or group.log(WORKER).endswith("\n"))
    assert child_of(group, WORKER) != first
    assert child_of(group, SERVICE) == service


def test_a_child_dies_with_its_actor_and_another_is_started(group: ProcessGroup) -> None:
    first = child_of(group, WORKER)
    kill_actor_of(first)
    wait_until(lambda: not first.is_running())
    wait_until(lambda: group.status(WORKER) == LOST)
    group.restart_dead()
    assert child_of(group, WORKER) != first


@pytest.mark.parametrize("name", [SERVICE, QUEUE])
def test_the_loss_of_an_address_lets_all_begin_again(cluster: Cluster, group: ProcessGroup, name: str) -> None:
    kill_actor_of(child_of(group, name))
    wait_until(lambda: not group.is_running(name))
    with pytest.raises(LostError, match=f"{name}: lost with its actor: "):
        group.restart_dead()


def test_a_stop_reaches_every_node_and_what_waits_for_room(cluster: Cluster, group: ProcessGroup) -> None:
    children = [child_of(group, name) for name in (QUEUE, SERVICE, WORKER)]
    take_node_of(cluster, group, WORKER)
    wait_until(lambda: group.status(WORKER) == LOST)
    group.restart_dead()
    group.stop()
    wait_until(lambda: not any(child.is_running() for child in children))
    cluster.add_node(**ROOM)


def test_a_run_begins_again_until_it_is_made(tmp_path: Path) -> None:
    lives = iter(range(2 * RESTARTS))

    def make() -> int:
        life = next(lives)
        with (tmp_path / "events.jsonl").open("a") as events:
            events.write('{"kind": "step"}\n')
        if life < 2 * RESTARTS - 1:
            raise LostError("service: gone with its node")
        return life

    assert until_made(make, tmp_path / "events.jsonl") == 2 * RESTARTS - 1


def test_a_run_whose_new_beginnings_bring_no_step_ends(tmp_path: Path) -> None:
    def make() -> None:
        raise LostError("service: gone with its node")

    with pytest.raises(UserError, match=f"service: gone with its node; {RESTARTS} new beginnings brought no step"):
        until_made(make, tmp_path / "events.jsonl")


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    keep = Keeper("10.0.0.7").keep(["-c", LIVING], {}, tmp_path / "logs" / "service.log", tmp_path, signal.SIGTERM)
    with pytest.raises(UserError, match=r"node 10\.0\.0\.7 does not see .*service\.log; .* that all nodes share"):
        asyncio.run(keep)


def test_what_is_stopped_before_it_began_does_not_begin(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.touch()

    async def stopped() -> int:
        keeper = Keeper("127.0.0.1")
        await keeper.signal(signal.SIGTERM)
        return await keeper.keep(["-c", LIVING], {}, log, tmp_path, signal.SIGTERM)

    assert asyncio.run(stopped()) == -signal.SIGTERM
    assert log.read_text() == ""


@pytest.mark.parametrize(
    ("address", "told"),
    [("ray://10.0.0.7:10001", "give HOST:PORT"), ("127.0.0.1:1", "no cluster that can be used")],
)
def test_a_wrong_address_is_told_in_one_line(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=told) as refusal, ray_cluster(small(), [WORKER]):
        pass
    assert "\n" not in str(refusal.value)


def test_a_run_on_ray_without_ray_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert main(["run", "miniature", "--on", "ray"]) == 2
    assert capsys.readouterr().err == "coevo run: --on ray: Ray is not installed; pip install 'coevo[ray]'\n"
