"""Minutes of load on one service: its memory stays flat. COEVO_SOAK_S says for how long there are too many callers."""

import asyncio
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests.engine.conftest import adapter_folders  # noqa: F401
from tests.engine.hostile import HOSTILE, Ask, begun_body
from tests.engine.load import FLAGS, check, is_flat, overrun, running, storm
from tests.engine.scaled import ScaledAdapter
from tests.engine.schema_walk import failures
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import Notes, scoring

SOAK_S = float(os.environ.get("COEVO_SOAK_S", "600"))
STORM_S = 60.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_S + 600)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    process = ServiceProcess(tmp_path_factory.mktemp("soak") / "store", *FLAGS)
    yield process
    process.stop()


def test_a_minute_of_publishes_leaves_neither_memory_nor_wrong_scores(service, adapter_folders) -> None:  # noqa: F811
    adapter, notes = ScaledAdapter(adapter_folders["plain"]), Notes()
    took_s, memory = asyncio.run(storm(service, adapter, notes, STORM_S))
    cuts = statistics.quantiles(took_s, n=100)
    print(f"{len(took_s)} published: p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms; {memory[::20]} MiB")
    assert set(notes.statuses) == {200}, [answer.text for answer in notes.refused]
    assert is_flat(memory)
    check(notes, adapter)


def test_minutes_of_too_many_callers_leave_nothing_behind(service) -> None:
    notes = Notes()
    memory = asyncio.run(overrun(service, notes, SOAK_S))
    print(f"{notes.statuses}, the slowest {notes.slowest_s:.1f} s, {memory[::20]} MiB")
    assert set(notes.statuses) == {200, 429}
    assert is_flat(memory)
    with service.client() as client:
        service.wait_until(lambda: not any(running(client).values()))
        assert client.post("/logprobs", json=scoring(random.Random())).status_code == 200


def test_two_thousand_hostile_requests_leave_memory_flat(service, tmp_path: Path) -> None:
    cases = [cast(tuple[Ask, int, str], case.values) for case in HOSTILE if not case.marks]
    memory: list[int] = []
    with service.client(connection="close") as client:
        while len(memory) * len(cases) < 2000:
            for request_, status, _ in cases:
                assert request_(client, tmp_path).status_code == status
            memory.append(service.memory_mib)
        assert client.post("/logprobs", json=scoring(random.Random())).status_code == 200
    print(f"{len(memory) * len(cases)} requests: {memory} MiB")
    assert is_flat(memory)


def test_no_request_that_the_schema_allows_is_answered_with_a_failure(service) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    assert failures(service, schemathesis, examples=200) == []


def test_a_body_that_stops_is_given_up_on(service) -> None:
    with begun_body(service) as connection:
        connection.settimeout(60)
        began = time.monotonic()
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        print(f"after {time.monotonic() - began:.0f} s")
    service.wait_until(lambda: not list(service.store.rglob("*.part")))
