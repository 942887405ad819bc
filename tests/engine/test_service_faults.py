"""The service killed at the steps of a publish, its engine killed and frozen, and all that too often.

A service takes long to start, so the first test is one service with as many lives as its supervisor grants. What is
killed at every single step is in the soak, and without an engine in `tests/service/publishing/test_publisher.py`.
"""

import asyncio
import contextlib
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.manifest import MANIFEST
from service.supervisor import ENGINE_DIED
from tests.engine.scaled import ScaledAdapter, put
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import Notes, ask, crowd, scoring, until_answered

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 1e-3
FROZEN_S = 5.0


@pytest.fixture(scope="module")
def adapter(adapter_folders) -> ScaledAdapter:
    return ScaledAdapter(adapter_folders["plain"])


def killed_while_publishing(service: ServiceProcess, adapter: ScaledAdapter, revision: int) -> None:
    """Until it is back."""
    lives = service.lives
    with service.client() as client, pytest.raises(httpx.TransportError):
        put(client, adapter, "image", revision)
    service.wait_until(lambda: service.lives == lives + 1)


def revisions(service: ServiceProcess) -> list[int]:
    """Revisions on disk, 0 is the start; and what the service says agrees with it."""
    on_disk = sorted(int(path.parent.name) for path in service.store.glob(f"image/*/{MANIFEST}"))
    assert list((service.store / ".staging").iterdir()) == []
    with service.client() as client:
        answer = client.get("/adapters/image")
        if not on_disk:
            assert answer.status_code == 404
        else:
            assert (answer.json()["head"], answer.json()["revisions"]) == (on_disk[-1], on_disk)
    return on_disk


def check(service: ServiceProcess, adapter: ScaledAdapter, head: int) -> None:
    """The branch's name is its head, with the head's numbers."""
    notes = Notes()
    with service.client() as client:
        notes.note(client.post("/logprobs", params={"adapter": "image"}, json=scoring(random.Random(head))))
    (scored,) = notes.scored
    assert scored.revision == head
    assert scored.logprobs == pytest.approx(adapter.logprobs(scored).tolist(), abs=TOLERANCE)


def test_killed_around_the_commit_and_its_engine_frozen_nothing_is_lost(tmp_path: Path, adapter) -> None:
    """Before the commit nothing is kept, after it the revision is; the fourth death in a short while is the last."""
    cache = tmp_path / "cache"
    cache.mkdir()
    service = ServiceProcess(
        tmp_path / "store",
        "--dtype=float32",
        COEVO_FAULT="after-load,after-commit",
        COEVO_FROZEN_S=str(FROZEN_S),
        COEVO_ADAPTER_CACHE=str(cache),
    )
    try:
        killed_while_publishing(service, adapter, 1)
        assert revisions(service) == []
        killed_while_publishing(service, adapter, 1)
        assert revisions(service) == [0, 1]
        with service.client() as client:
            assert put(client, adapter, "image", 1).status_code == 200
        check(service, adapter, 1)
        engine_killed(service, adapter)
        assert revisions(service) == [0, 1]
        assert len(list(cache.iterdir())) == 1, "an earlier life's copies of the adapters are left"
        frozen_for_good(service)
    finally:
        service.stop()


def engine_killed(service: ServiceProcess, adapter: ScaledAdapter) -> None:
    """Callers who ask again outlive it."""
    notes, lives = Notes(), service.lives

    async def readiness(client: httpx.AsyncClient) -> int | None:
        try:
            return (await client.get("/readyz", timeout=5)).status_code
        except httpx.TransportError:
            return None

    async def kill() -> None:
        is_over = asyncio.Event()
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client, asyncio.TaskGroup() as group:

            async def caller(draw: random.Random) -> None:
                notes.note(await until_answered(lambda: ask(client, draw, ["image", "base"]), notes, 120))

            group.create_task(crowd(16, is_over.is_set, caller))
            await asyncio.sleep(1)
            assert await readiness(client) == 200
            service.engine_core.send_signal(signal.SIGKILL)
            while await readiness(client) == 200:
                await asyncio.sleep(0.05)
            while await readiness(client) != 200:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            is_over.set()

    asyncio.run(kill())
    print(f"{notes.statuses}, {notes.broken} cut off")
    assert service.lives == lives + 1
    assert notes.broken + notes.statuses.get(503, 0) > 0
    assert set(notes.statuses) <= {200, 503}, [answer.text for answer in notes.refused]
    check_all(notes, adapter, 1)


def frozen_for_good(service: ServiceProcess) -> None:
    """Who asks meanwhile is not told that all is well. Nothing is left, not even the process that stands still."""
    family = service.family
    service.engine_core.send_signal(signal.SIGSTOP)
    with service.client() as client, contextlib.suppress(httpx.TransportError):
        assert client.post("/logprobs", json=scoring(random.Random(0))).status_code == 503
    assert service.wait_for_end() == ENGINE_DIED
    assert "frozen" in service.log
    assert "giving up" in service.log
    assert none_of(family)


def check_all(notes: Notes, adapter: ScaledAdapter, revision: int) -> None:
    """Before a death and after it, all were answered by this one, with its numbers."""
    assert {scored.revision for scored in notes.scored if scored.adapter == "image"} == {revision}
    for scored in notes.scored:
        assert scored.logprobs == pytest.approx(adapter.logprobs(scored).tolist(), abs=TOLERANCE), scored


def none_of(family: list[psutil.Process]) -> bool:
    _, left = psutil.wait_procs(family, timeout=10)
    return not [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.soak
def test_killed_or_frozen_at_any_step_nothing_is_lost_or_wrong(tmp_path: Path, adapter) -> None:
    """Side by side, since most of it is waiting for a service to start."""
    scenarios = (killed_before_the_commit_then_too_often, killed_after_the_commit_then_frozen)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(scenario, tmp_path / scenario.__name__, adapter) for scenario in scenarios]
    for future in running:
        future.result()


def killed_before_the_commit_then_too_often(store: Path, adapter: ScaledAdapter) -> None:
    """Nothing is kept; at last the parent ends, with all of its family."""
    service = ServiceProcess(store, "--dtype=float32", COEVO_FAULT="after-stage,after-decide,after-load")
    try:
        for _ in range(3):
            killed_while_publishing(service, adapter, 1)
            assert revisions(service) == []
        with service.client() as client:
            refused = put(client, adapter, "image", 1, meta='{"canary": [' + ",".join(["-1.0"] * 16) + "]}")
            assert (refused.status_code, refused.json()["type"]) == (422, "canary")
            assert put(client, adapter, "image", 1).status_code == 201
        assert revisions(service) == [0, 1]
        check(service, adapter, 1)
        family = service.family
        service.engine_core.send_signal(signal.SIGKILL)
        assert service.wait_for_end() == ENGINE_DIED
        assert "giving up" in service.log
        assert none_of(family)
    finally:
        service.stop()


def killed_after_the_commit_then_frozen(store: Path, adapter: ScaledAdapter) -> None:
    """The revision is kept; a frozen engine is replaced; no life leaves its copies of the adapters behind."""
    cache = store.with_suffix(".cache")
    cache.mkdir()
    service = ServiceProcess(
        store,
        "--dtype=float32",
        COEVO_FAULT="after-commit,after-advance",
        COEVO_FROZEN_S=str(FROZEN_S),
        COEVO_ADAPTER_CACHE=str(cache),
    )
    try:
        for revision in (1, 2):
            killed_while_publishing(service, adapter, revision)
            assert revisions(service) == list(range(revision + 1))
            with service.client() as client:
                assert put(client, adapter, "image", revision).status_code == 200
            check(service, adapter, revision)
        frozen(service, adapter)
        assert revisions(service) == [0, 1, 2]
        assert len(list(cache.iterdir())) == 1
    finally:
        service.stop()
    assert list(cache.iterdir()) == []


def frozen(service: ServiceProcess, adapter: ScaledAdapter) -> None:
    notes, lives = Notes(), service.lives

    async def freeze() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client, asyncio.TaskGroup() as group:

            async def caller(draw: random.Random) -> None:
                notes.note(await until_answered(lambda: ask(client, draw, ["image", "base"]), notes, 120))

            callers = group.create_task(crowd(8, lambda: service.lives > lives, caller))
            await asyncio.sleep(1)
            service.engine_core.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            with contextlib.suppress(httpx.TransportError):
                assert (await client.get("/readyz", timeout=30)).status_code == 503
            await callers
            print(f"ready {time.monotonic() - began:.1f} s after it froze, {notes.statuses}, {notes.broken} cut off")

    asyncio.run(freeze())
    assert "frozen" in service.log
    assert notes.broken > 0
    assert set(notes.statuses) <= {200, 503}
    check_all(notes, adapter, 2)
