"""The service under many callers: publishes in between, more callers than it takes, and those who mean it ill."""

import asyncio
import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import httpx
import pytest

from service.http.problems import TYPE_HEADER
from tests.engine.hostile import HOSTILE, PATHS, Ask, bare_request, begun_body
from tests.engine.load import FLAGS, check, is_flat, overrun, running, storm
from tests.engine.scaled import ScaledAdapter
from tests.engine.schema_walk import failures
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import Notes, scoring

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SECONDS = 12.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Ended in order, it leaves no copies of its adapters. Its temporary folder is too long a name for a socket."""
    folder, cache = tmp_path_factory.mktemp("load"), tmp_path_factory.mktemp("cache")
    far = folder / ("far" * 40)
    far.mkdir()
    places = {"COEVO_ADAPTER_CACHE": str(cache), "TMPDIR": str(far)}
    process = ServiceProcess(folder / "store", *FLAGS, COEVO_API_KEY="sesame", **places)
    yield process
    process.stop()
    assert list(cache.iterdir()) == []


@pytest.fixture(scope="module")
def adapter(adapter_folders) -> ScaledAdapter:
    return ScaledAdapter(adapter_folders["plain"])


def test_every_answer_is_of_the_revision_it_names_while_revisions_pour_in(service, adapter) -> None:
    notes = Notes()
    took_s, memory = asyncio.run(storm(service, adapter, notes, SECONDS))
    assert set(notes.statuses) == {200}, [answer.text for answer in notes.refused]
    cuts = statistics.quantiles(took_s, n=100)
    print(f"{len(took_s)} published, {sum(notes.statuses.values())} answers, {len(notes.scored)} scores")
    print(f"publish to servable: p50 {cuts[49] * 1000:.0f} ms, p99 {cuts[98] * 1000:.0f} ms; {memory} MiB")
    check(notes, adapter)
    seen = {scored.revision for scored in notes.scored if scored.adapter == "storm"}
    assert len(seen) > len(took_s) / 2
    assert is_flat(memory)


def test_too_many_callers_hear_when_to_come_again_and_none_waits(service) -> None:
    notes = Notes()
    memory = asyncio.run(overrun(service, notes, SECONDS))
    print(f"{notes.statuses}, the slowest {notes.slowest_s:.1f} s, {memory} MiB")
    assert set(notes.statuses) == {200, 429}
    assert all(answer.json()["type"] == "busy" for answer in notes.refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in notes.refused)
    assert is_flat(memory)
    with service.client() as client:
        service.wait_until(lambda: not any(running(client).values()))
        assert client.post("/logprobs", json=scoring(random.Random())).status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(("request_", "status", "kind"), HOSTILE)
def test_hostile_input_gets_a_clear_answer(request_: Ask, status: int, kind: str, service, tmp_path: Path) -> None:
    with service.client(connection="close") as client:
        answer = request_(client, tmp_path)
    # By the header, as it is the same for both shapes of errors.
    assert (answer.status_code, answer.headers.get(TYPE_HEADER)) == (status, kind), answer.text[:500]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", PATHS)
def test_a_path_leads_nowhere_but_to_a_route(path: str, service) -> None:
    answer = bare_request(service, path)
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 422")), answer[:500]
    assert b"root:" not in answer


def test_without_the_key_only_health_is_told(service) -> None:
    with httpx.Client(base_url=service.url) as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/adapters", "/readyz", "/metrics", "/openapi.json", "/docs", "/v1/models", "/nowhere"):
            for headers in ({}, {"x-api-key": "open"}, {"authorization": "Bearer sesame2"}):
                assert client.get(path, headers=headers).status_code == 401, path


def test_slow_and_hostile_bodies_hold_nobody_up_and_leave_nothing_behind(service, tmp_path: Path) -> None:
    def names() -> set[str]:
        return {str(path) for path in service.store.parent.rglob("*")}

    before, memory = names(), service.memory_mib
    with service.client(connection="close") as client, ExitStack() as slow:
        for _ in range(50):
            slow.enter_context(begun_body(service))
        for _ in range(3):
            for case in HOSTILE:
                if not case.marks:
                    request_, status, _ = cast(tuple[Ask, int, str], case.values)
                    assert request_(client, tmp_path).status_code == status, case.id
        assert client.post("/logprobs", json=scoring(random.Random(1))).status_code == 200
        assert client.get("/readyz").status_code == 200
        slow.close()
        service.wait_until(lambda: names() == before)
        service.wait_until(lambda: not any(running(client).values()))
    print(f"{memory} MiB before, {service.memory_mib} MiB after")
    assert service.memory_mib < memory + 250


def test_nothing_that_the_schema_allows_is_answered_with_a_failure(service) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    assert failures(service, schemathesis, examples=10) == []  # 200 in the soak
