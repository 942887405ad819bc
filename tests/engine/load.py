"""The two loads that a service is put under: revisions that pour in, and more callers than it takes."""

import asyncio
import contextlib
import random
import time

import httpx
import pytest

from tests.engine.scaled import ScaledAdapter
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import Notes, ask, crowd, sampling

CALLERS = 32
FLAGS = ("--dtype=float32", "--max-requests=8", "--max-waiting=24", "--body-bytes=4000000")
"""So that all callers have room, and one more has none."""
TOLERANCE = 1e-3
KEEP = 4


def check(notes: Notes, adapter: ScaledAdapter) -> None:
    """Every score is the one of the revision that it is stamped with, and of no other."""
    assert notes.scored
    for scored in notes.scored:
        assert scored.logprobs == pytest.approx(adapter.logprobs(scored).tolist(), abs=TOLERANCE), scored


def connect(service: ServiceProcess) -> httpx.AsyncClient:
    unlimited = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=service.url, timeout=60, limits=unlimited, headers=service.headers)


async def storm(
    service: ServiceProcess, adapter: ScaledAdapter, notes: Notes, seconds: float
) -> tuple[list[float], list[int]]:
    """A revision every 200 ms, the ones before the last few retired, while all callers ask for the head."""
    took_s: list[float] = []
    memory: list[int] = []
    is_over = asyncio.Event()

    async def publish(client: httpx.AsyncClient) -> None:
        ends = time.monotonic() + seconds
        revision = 1
        while time.monotonic() < ends:
            began = time.monotonic()
            revision += 1
            answer = await client.put(
                f"/adapters/storm/{revision}", data={"parent": str(revision - 1)}, files=adapter.files(revision)
            )
            assert answer.status_code == 201, answer.text
            took_s.append(time.monotonic() - began)
            if revision > KEEP:
                assert (await client.delete(f"/adapters/storm/{revision - KEEP}")).status_code == 204
            memory.append(service.memory_mib)
            await asyncio.sleep(began + 0.2 - time.monotonic())
        is_over.set()

    async with connect(service) as client, asyncio.TaskGroup() as group:
        answer = await client.put("/adapters/storm/1", data={"parent": "0"}, files=adapter.files(1))
        assert answer.status_code == 201, answer.text

        async def caller(draw: random.Random) -> None:
            notes.note(await ask(client, draw, draw.choice([["storm"], ["storm", "base"]])))

        group.create_task(publish(client))
        group.create_task(crowd(CALLERS, is_over.is_set, caller))
    return took_s, memory


async def overrun(service: ServiceProcess, notes: Notes, seconds: float) -> list[int]:
    """Twice as many callers as there is room for, some of whom hang up; gives the memory over time."""
    memory: list[int] = []
    ends = time.monotonic() + seconds

    async with connect(service) as client, asyncio.TaskGroup() as group:

        async def caller(draw: random.Random) -> None:
            if draw.random() < 0.1:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(draw.uniform(0.0, 0.3)):
                        await client.post("/generate", json=sampling(draw, max_tokens=200))
                return
            answer = await ask(client, draw, ["base"])
            notes.note(answer)
            if answer.status_code == 429:
                await asyncio.sleep(0.2)

        group.create_task(crowd(2 * CALLERS, lambda: time.monotonic() > ends, caller))
        while time.monotonic() < ends:
            memory.append(service.memory_mib)
            await asyncio.sleep(0.5)
    return memory


def running(client: httpx.Client) -> dict[str, float]:
    """The depths of admission, and nothing else in flight."""
    lines = client.get("/metrics").text.splitlines()
    names = ("coevo_running_requests", "coevo_running_tokens", "coevo_waiting_requests")
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name in names}


def is_flat(memory_mib: list[int], growth_mib: int = 100) -> bool:
    """After a third of the time, which warms up."""
    return memory_mib[-1] < memory_mib[len(memory_mib) // 3] + growth_mib
