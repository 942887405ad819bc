"""The service under many callers: publishes in between, more callers than it takes, and an engine that dies."""

import asyncio
import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.engine.scaled import ScaledAdapter, put
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import Notes, ask, crowd, sampling, scoring, until_answered

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SECONDS = float(os.environ.get("COEVO_SOAK_S", "10"))
CALLERS = 32
GROWTH_MIB = 200
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("load")
    (folder / "cache").mkdir()
    process = ServiceProcess(
        folder / "store", "--dtype=float32", "--max-requests=8", "--max-waiting=24", f"--adapter-cache={folder}/cache"
    )
    yield process
    process.stop()


@pytest.fixture(scope="module")
def adapter(base, adapter_folders) -> ScaledAdapter:
    return ScaledAdapter(base[0], adapter_folders["plain"])


def check(notes: Notes, adapter: ScaledAdapter) -> None:
    """Every score is the one of the revision that it is stamped with, and of no other."""
    assert notes.scored
    for one in notes.scored:
        assert one.logprobs == pytest.approx(adapter.logprobs(one).tolist(), abs=TOLERANCE), one


def connect(service: ServiceProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, timeout=60, limits=httpx.Limits(max_connections=None))


async def storm(service: ServiceProcess, adapter: ScaledAdapter, notes: Notes) -> tuple[list[float], list[int]]:
    """A revision every 200 ms, the ones before the last few retired, while all callers ask for the head."""
    took_s: list[float] = []
    memory: list[int] = []
    is_over = asyncio.Event()

    async def publish(client: httpx.AsyncClient) -> None:
        ends = time.monotonic() + SECONDS
        revision = 1
        while time.monotonic() < ends:
            began = time.monotonic()
            revision += 1
            answer = await client.put(
                f"/adapters/storm/{revision}", data={"parent": str(revision - 1)}, files=adapter.files(revision)
            )
            assert answer.status_code == 201, answer.text
            took_s.append(time.monotonic() - began)
            if revision > 4:
                assert (await client.delete(f"/adapters/storm/{revision - 4}")).status_code == 204
            memory.append(service.memory_mib)
            await asyncio.sleep(began + 0.2 - time.monotonic())
        is_over.set()

    async with connect(service) as client, asyncio.TaskGroup() as group:
        answer = await client.put("/adapters/storm/1", data={"parent": "0"}, files=adapter.files(1))
        assert answer.status_code == 201, answer.text

        async def one(draw: random.Random) -> None:
            notes.note(await ask(client, draw, draw.choice([["storm"], ["storm", "base"]])))

        group.create_task(publish(client))
        group.create_task(crowd(CALLERS, is_over.is_set, one))
    return took_s, memory


def test_every_answer_is_of_the_revision_it_names_while_revisions_pour_in(service, adapter) -> None:
    notes = Notes()
    took_s, memory = asyncio.run(storm(service, adapter, notes))
    assert set(notes.statuses) == {200}, [answer.text for answer in notes.refused]
    cuts = statistics.quantiles(took_s, n=100)
    print(f"{len(took_s)} published, {sum(notes.statuses.values())} answers, {len(notes.scored)} scores")
    print(f"publish to servable: p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms; {memory} MiB")
    check(notes, adapter)
    seen = {one.revision for one in notes.scored if one.adapter == "storm"}
    assert len(seen) > len(took_s) / 2
    assert memory[-1] < memory[len(memory) // 3] + GROWTH_MIB


def running(client: httpx.Client) -> dict[str, float]:
    """The depths of admission, and nothing else in flight."""
    lines = client.get("/metrics").text.splitlines()
    names = ("coevo_running_requests", "coevo_running_tokens", "coevo_waiting_requests")
    return {name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name in names}


def test_more_callers_than_it_takes_are_told_when_to_come_again_and_none_waits_for_ever(service) -> None:
    notes = Notes()
    memory: list[int] = []

    async def overrun() -> None:
        ends = time.monotonic() + SECONDS
        async with connect(service) as client, asyncio.TaskGroup() as group:

            async def one(draw: random.Random) -> None:
                if draw.random() < 0.1:  # one that hangs up
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(draw.uniform(0.0, 0.3)):
                            await client.post("/generate", json=sampling(draw, max_tokens=200))
                    return
                answer = await ask(client, draw, ["base"])
                notes.note(answer)
                if answer.status_code == 429:
                    await asyncio.sleep(0.2)

            group.create_task(crowd(2 * CALLERS, lambda: time.monotonic() > ends, one))
            while time.monotonic() < ends:
                memory.append(service.memory_mib)
                await asyncio.sleep(0.5)

    asyncio.run(overrun())
    print(f"{notes.statuses}, the slowest {notes.slowest_s:.1f} s, {memory} MiB")
    assert set(notes.statuses) == {200, 429}
    assert all(answer.json()["type"] == "busy" for answer in notes.refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in notes.refused)
    assert memory[-1] < memory[len(memory) // 3] + GROWTH_MIB
    with service.client() as client:
        service.wait_until(lambda: not any(running(client).values()))
        assert client.post("/logprobs", json=scoring(random.Random())).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_callers_who_ask_again_outlive_an_engine_that_is_killed(service, adapter) -> None:
    notes, lives = Notes(), service.lives
    with service.client() as client:
        assert put(client, adapter, "kept", 1).status_code == 201
    seen: dict[str, float] = {}

    async def probe(client: httpx.AsyncClient) -> int | None:
        try:
            return (await client.get("/readyz", timeout=5)).status_code
        except httpx.TransportError:
            return None

    async def kill() -> None:
        is_over = asyncio.Event()
        async with connect(service) as client, asyncio.TaskGroup() as group:

            async def one(draw: random.Random) -> None:
                notes.note(await until_answered(lambda: ask(client, draw, ["kept", "base"]), notes, 120))

            group.create_task(crowd(16, is_over.is_set, one))
            await asyncio.sleep(1)
            assert await probe(client) == 200
            service.engine_core.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            while await probe(client) == 200:
                await asyncio.sleep(0.05)
            seen["not ready"] = time.monotonic() - killed
            while await probe(client) != 200:
                await asyncio.sleep(0.1)
            seen["ready"] = time.monotonic() - killed
            await asyncio.sleep(1)
            is_over.set()

    asyncio.run(kill())
    print(f"{seen} s, {notes.statuses}, {notes.broken} cut off")
    assert service.lives == lives + 1
    assert seen["not ready"] < 5
    assert notes.broken + notes.statuses.get(503, 0) > 0
    assert set(notes.statuses) <= {200, 429, 503}, [answer.text for answer in notes.refused]
    check(notes, adapter)
    assert {one.revision for one in notes.scored if one.adapter == "kept"} == {1}
