"""A service of two cores, of which one is killed, and then one frozen: it says which, and nothing is lost or wrong.

Both cores are asked all the time, by prompts of chance.
"""

import asyncio
import contextlib
import random
import signal
from pathlib import Path

import httpx
import pytest

from service.engine.cores import Cores
from tests.engine.scaled import ScaledAdapter, put
from tests.engine.service_process import ServiceProcess
from tests.engine.test_service_faults import TOLERANCE
from tests.engine.traffic import Notes, Scored, crowd, scoring, until_answered

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(2300)]

FROZEN_S = 8.0


async def ask(client: httpx.AsyncClient, draw: random.Random, notes: Notes) -> list[Scored]:
    """A prompt of chance, under the adapter and the base; asked again until it is answered."""
    prompt, completion = (tuple(draw.randrange(200) for _ in range(count)) for count in (20, 8))
    body = {"sequences": [{"prompt": prompt, "completion": completion}]}
    params = {"adapter": ["image", "base"]}
    answer = await until_answered(lambda: client.post("/logprobs", params=params, json=body), notes, 400)
    scored: list[Scored] = []
    for adapter in answer.json()["adapters"]:
        (row,) = adapter["sequences"]
        scored.append(Scored(adapter["adapter"], adapter["revision"], completion, tuple(row["logprobs"]), prompt))
    return scored


async def trouble(service: ServiceProcess, number: int, how: signal.Signals) -> tuple[list[Scored], Notes, set[str]]:
    """What callers were told before, meanwhile and after, and what whoever asked for its health was."""
    notes, scored, reasons, lives = Notes(), list[Scored](), set[str](), service.lives

    def is_back() -> bool:
        return service.lives > lives

    async def caller(draw: random.Random) -> None:
        scored.extend(await ask(client, draw, notes))

    async def watch() -> None:
        while not is_back():
            with contextlib.suppress(httpx.TransportError):
                answer = await client.get("/readyz", timeout=20)
                if answer.status_code == 503:
                    reasons.add(answer.json()["detail"])
            await asyncio.sleep(0.02)

    async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd(8, is_back, caller))
            await asyncio.sleep(1)
            service.engine_cores[number].send_signal(how)
            group.create_task(watch())
        assert (await client.get("/readyz")).status_code == 200
        for seed in range(16):  # of both cores in their new lives
            scored += await ask(client, random.Random(1000 + seed), notes)
    return scored, notes, reasons


def check(scored: list[Scored], adapter: ScaledAdapter, revision: int) -> None:
    """A few of them: the reference is slower than the service."""
    assert {row.revision for row in scored if row.adapter == "image"} == {revision}
    chosen = [*scored[:50], *scored[-100:]]
    assert {Cores(None, 2).of(row.prompt, []) for row in chosen} == {0, 1}
    for row in chosen:
        assert row.logprobs == pytest.approx(adapter.logprobs(row).tolist(), abs=TOLERANCE), row


def test_a_dead_or_frozen_core_is_named_and_both_come_back(tmp_path: Path, adapter_folders) -> None:
    adapter = ScaledAdapter(adapter_folders["plain"])
    flags = ("--dtype=float32", "--data-parallel=2")
    service = ServiceProcess(tmp_path / "store", *flags, COEVO_FROZEN_S=str(FROZEN_S))
    dead, frozen = "the engine is dead: core 1 of 0 to 1", "core 0 of 0 to 1"
    try:
        for revision, core, how, words in ((1, 1, signal.SIGKILL, dead), (2, 0, signal.SIGSTOP, frozen)):
            with service.client() as client:
                assert put(client, adapter, "image", revision).status_code == 201
            lives = service.lives
            scored, notes, reasons = asyncio.run(trouble(service, core, how))
            print(f"{how.name}: {len(scored)} scores, {notes.statuses}, {notes.broken} cut off, {reasons}")
            assert service.lives == lives + 1
            assert words in service.log
            # A service whose core is dead ends within a second, in which it may be asked or not.
            assert all(words in reason for reason in reasons)
            assert reasons or how is signal.SIGKILL
            assert notes.broken + notes.statuses.get(503, 0) > 0
            assert set(notes.statuses) <= {200, 503}, [answer.text for answer in notes.refused]
            check(scored, adapter, revision)
            assert len(service.engine_cores) == 2
        with service.client() as client:
            assert client.delete("/adapters/image/1").status_code == 204
            gone = client.post("/logprobs", params={"adapter": "image@1"}, json=scoring(random.Random(0)))
            assert gone.status_code == 410
    finally:
        service.stop()
