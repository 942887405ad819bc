import asyncio

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.http.admission import Admission
from service.http.auth import ApiKey
from service.http.metrics import Metrics, Timed
from service.http.problems import ProblemError, install


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_tokens_are_counted_by_branch_never_by_revision(metrics):
    metrics.count_tokens("image@17", "scored", 5)
    metrics.count_tokens("image@18", "scored", 6)
    metrics.count_tokens("image", "prompt", 7)
    assert value(metrics, "coevo_tokens_total", branch="image", kind="scored") == 11
    assert value(metrics, "coevo_tokens_total", branch="image", kind="prompt") == 7


def test_the_number_of_branches_told_apart_is_bounded(metrics):
    for number in range(500):
        metrics.count_tokens(f"b{number}", "scored", 1)
    samples = [line for line in metrics.render().decode().splitlines() if line.startswith("coevo_tokens_total{")]
    assert len(samples) == 101
    assert value(metrics, "coevo_tokens_total", branch="other", kind="scored") == 400


def test_a_publish_and_its_canary(metrics):
    metrics.count_publish("text", 0.03)
    metrics.count_publish("text", None)
    assert value(metrics, "coevo_publishes_total", branch="text") == 2
    assert value(metrics, "coevo_canary_difference", branch="text") == 0.03


def test_the_queue_is_shown_as_it_is_when_asked(metrics):
    async def scenario():
        gate = Admission(max_requests=2, max_tokens=10, max_waiting=1, max_wait_s=1)
        metrics.watch(gate)
        async with gate.admit(7):
            assert value(metrics, "coevo_running_tokens") == 7
            assert value(metrics, "coevo_running_requests") == 1
        assert value(metrics, "coevo_running_tokens") == 0

    asyncio.run(scenario())


def test_two_services_in_one_process_do_not_meet(metrics):
    second = Metrics()
    metrics.cache_hits.inc()
    assert value(metrics, "coevo_score_cache_hits_total") == 1
    assert value(second, "coevo_score_cache_hits_total") == 0


def ask(app, *paths):
    async def scenario():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            for path in paths:
                await client.get(path)

    asyncio.run(scenario())


@pytest.fixture
def app():
    app = FastAPI()
    install(app)

    @app.get("/adapters/{branch}")
    async def describe(branch: str) -> str:
        if branch == "fails":
            raise RuntimeError
        if branch == "fenced":
            raise ProblemError("fenced", 409, "another worker has the lease")
        return branch

    return app


def test_answers_are_timed_by_the_routes_template(app, metrics):
    ask(Timed(app, metrics), "/adapters/text", "/adapters/image", "/adapters/fails", "/x", "/y")

    def count(route, status):
        return value(metrics, "coevo_request_seconds_count", route=route, status=status)

    assert count("/adapters/{branch}", "2xx") == 2
    assert count("/adapters/{branch}", "5xx") == 1
    assert count("other", "4xx") == 2


def test_errors_are_counted_by_their_type(app, metrics):
    guarded = ApiKey(app, SecretStr("sesame"))
    ask(Timed(app, metrics), "/adapters/text", "/adapters/fenced", "/adapters/fenced", "/adapters/fails", "/x")
    ask(Timed(guarded, metrics), "/adapters/text")
    counts = {
        type: value(metrics, "coevo_rejections_total", type=type)
        for type in ("fenced", "internal", "not-found", "unauthorised", "busy")
    }
    assert counts == {"fenced": 2, "internal": 1, "not-found": 1, "unauthorised": 1, "busy": None}
