"""Two hosts, as network namespaces: an engine of two cores, and the host of the workers, or of a core, that is lost."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.engine.arguments import LORA_MODULES
from tests.adapters.peft_files import save_by_peft
from tests.engine.scaled import ScaledAdapter, put
from tests.engine.service_process import ServiceProcess
from tests.engine.test_data_parallel_faults import ask, check
from tests.engine.traffic import Notes
from tests.faults.cluster import Cluster
from tests.faults.namespaces import FAR_ADDRESS, Machines, inside, missing, open_to_others, two_machines
from tests.faults.recipes import CAPABILITIES, written

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(2300)]
LEASE_S = 6.0
FROZEN_S = 20.0


@pytest.fixture
def machines() -> Iterator[Machines]:
    """These tests are on the near one."""
    if why := missing():
        pytest.skip(why)
    with two_machines() as machines, inside(machines.near):
        yield machines


def test_a_run_on_two_cores_ends_after_its_workers_host_was_lost(machines: Machines, tmp_path: Path) -> None:
    """Queue, service and coordinator are on the far host, two workers on the near one."""
    recipe = written(tmp_path, "hosts", "method.cycles=2")
    branches = [f"hosts-{capability}" for capability in CAPABILITIES]
    with inside(machines.far):
        cluster = Cluster(tmp_path, "--host=0.0.0.0", "--data-parallel=2", lease_s=LEASE_S)
        open_to_others(cluster.server, FAR_ADDRESS)
        coordinator = cluster.coordinator(recipe)
    cluster.reach(FAR_ADDRESS)
    shares = (branches[:2], branches[2:])
    try:
        workers = [cluster.worker(*share, name=f"first-{number}") for number, share in enumerate(shares)]
        for branch in branches:
            cluster.wait_for_head(branch, 1)
        machines.pull_cable()
        for worker in workers:
            worker.kill()
        machines.plug_in()
        heads = cluster.heads()
        workers = [cluster.worker(*share, name=f"second-{number}") for number, share in enumerate(shares)]
        assert [worker.wait(600) for worker in workers] == [0, 0]
        assert coordinator.wait() == 0
        assert sum(cluster.heads().values()) > sum(heads.values())
        cluster.check(recipe)
    finally:
        cluster.close()


class CoresHost:
    """`coevo serve` for core 1 alone."""

    def __init__(self, log: Path, *flags: str) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clients.cli", "serve", "--data-parallel-start=1", *flags],
                stdout=file,
                stderr=file,
                env=os.environ | {"COEVO_FROZEN_S": str(FROZEN_S)},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(60)
        os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


async def ask_both(url: str) -> list:
    notes = Notes()
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        rows = [await ask(client, random.Random(seed), notes) for seed in range(16)]
    return [row for pair in rows for row in pair]


def test_cores_of_two_hosts_serve_and_come_back_after_either_was_lost(machines: Machines, tmp_path: Path) -> None:
    adapter = ScaledAdapter(
        save_by_peft(tmp_path / "adapter", strength=0.1, lora_alpha=8, target_modules=list(LORA_MODULES))
    )
    cache = tmp_path / "shared"
    cache.mkdir()
    here = ("--data-parallel=2", "--data-parallel-local=1", f"--data-parallel-address={FAR_ADDRESS}")
    flags = (*here, "--dtype=float32", f"--adapter-cache={cache}")
    second = CoresHost(tmp_path / "second.log", *flags, "--max-model-len=512", "--max-lora-rank=16")
    try:
        with inside(machines.far):
            service = ServiceProcess(tmp_path / "store", "--host=0.0.0.0", *flags, COEVO_FROZEN_S=str(FROZEN_S))
        service.url = service.url.replace("0.0.0.0", FAR_ADDRESS)
        with service.client() as client:
            assert put(client, adapter, "image", 1).status_code == 201
        check(asyncio.run(ask_both(service.url)), adapter, 1)
        machines.pull_cable()
        service.wait_until(lambda: "the engine is frozen: core 1 of 0 to 1" in service.log)
        service.wait_until(lambda: "no word from the service" in second.log)
        machines.plug_in()
        service.wait_until(lambda: service.lives == 2)
        check(asyncio.run(ask_both(service.url)), adapter, 1)
        service.engine_core.kill()
        service.wait_until(lambda: service.lives == 3)
        check(asyncio.run(ask_both(service.url)), adapter, 1)
        service.stop()
    finally:
        second.stop()
