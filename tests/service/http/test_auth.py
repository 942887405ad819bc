import asyncio

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr

from service.http.auth import ApiKey, BodyLimit, HeadLimit, HostCheck, hosts_of
from service.http.problems import install
from service.schemas import LogprobsRequest
from service.settings import Settings

KEY = "correct-horse"


@pytest.fixture
def routes():
    app = FastAPI()
    install(app)
    app.state.entered = []

    @app.get("/healthz")
    async def healthz() -> str:
        return "ok"

    @app.get("/adapters")
    async def adapters() -> str:
        app.state.entered.append("adapters")
        return "ok"

    @app.post("/logprobs")
    async def logprobs(request: LogprobsRequest) -> int:
        return len(request.sequences)

    @app.put("/media")
    async def media(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    return app


def ask(app, method, path, **more):
    async def once():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.request(method, path, **more)

    return asyncio.run(once())


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}]
)
def test_the_key_opens(routes, headers):
    assert ask(ApiKey(routes, SecretStr(KEY)), "GET", "/adapters", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": "\u00fc"},
        {"cookie": KEY},
    ],
)
@pytest.mark.parametrize("path", ["/adapters", "/metrics", "/healthz/", "/healthz/../adapters", "/nowhere"])
def test_without_the_key_nothing_is_reached(routes, headers, path):
    answer = ask(ApiKey(routes, SecretStr(KEY)), "GET", path, headers={k: v.encode() for k, v in headers.items()})
    assert answer.status_code == 401
    assert answer.json()["type"] == "unauthorised"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert routes.state.entered == []


def test_health_needs_no_key(routes):
    assert ask(ApiKey(routes, SecretStr(KEY)), "GET", "/healthz").status_code == 200


def test_without_a_key_set_everything_is_open(routes):
    assert ask(ApiKey(routes, None), "GET", "/adapters").status_code == 200


def test_a_websocket_without_the_key_is_closed(routes):
    sent = []

    async def receive():
        pytest.fail("nothing is read from it")

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/adapters", "headers": []}
    asyncio.run(ApiKey(routes, SecretStr(KEY))(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def chunks(count, size=100):
    for _ in range(count):
        yield b"x" * size


@pytest.mark.parametrize("content", [b"x" * 1001, chunks(11)], ids=["stated length", "chunked"])
@pytest.mark.parametrize(("method", "path"), [("PUT", "/media"), ("POST", "/logprobs")])
def test_a_body_above_the_limit_is_refused(routes, method, path, content):
    app = BodyLimit(routes, 1000, {})
    content = chunks(11) if not isinstance(content, bytes) else content
    answer = ask(app, method, path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["type"] == "too-large"


def test_the_rest_of_a_body_that_is_too_large_is_not_read(routes):
    taken = []

    async def endless():
        while True:
            taken.append(1)
            yield b"x" * 100

    assert ask(BodyLimit(routes, 1000, {}), "PUT", "/media", content=endless()).status_code == 413
    assert len(taken) == 11


@pytest.mark.parametrize("content", [b"x" * 1000, chunks(10)], ids=["stated length", "chunked"])
def test_a_body_at_the_limit_passes(routes, content):
    assert ask(BodyLimit(routes, 1000, {}), "PUT", "/media", content=content).json() == 1000


def test_uploads_have_their_own_limits(routes):
    app = BodyLimit(routes, 10, {"/media": 2000})
    assert ask(app, "PUT", "/media", content=b"x" * 2000).json() == 2000
    assert ask(app, "PUT", "/media", content=b"x" * 2001).status_code == 413
    assert ask(app, "PUT", "/mediocre", content=b"x" * 11).status_code == 413
    assert ask(app, "POST", "/media", content=b"x" * 11).status_code == 413


def test_a_body_that_stops_coming_is_given_up(routes):
    async def stuck():
        yield b"{"
        await asyncio.Event().wait()

    answer = ask(BodyLimit(routes, 1000, {}, grace_s=0.05), "POST", "/logprobs", content=stuck())
    assert answer.status_code == 408
    assert answer.json()["type"] == "too-slow"


def test_waiting_for_an_answer_is_not_waiting_for_the_body(routes):
    @routes.get("/slow")
    async def slow(request: Request) -> str:
        await request.body()
        receive = asyncio.ensure_future(request.receive())  # what a server does to see that the client has gone
        done, _ = await asyncio.wait([receive], timeout=0.1)
        receive.cancel()
        return "gone" if done else "there"

    assert ask(BodyLimit(routes, 1000, {}, grace_s=0.01), "GET", "/slow").json() == "there"


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        (Settings(), "127.0.0.1:8000", 200),
        (Settings(), "localhost", 200),
        (Settings(), "[::1]:8000", 200),
        (Settings(), "LocalHost:1", 200),
        (Settings(), "rebound.example", 421),
        (Settings(), "rebound.example:8000", 421),
        (Settings(), "localhost.rebound.example", 421),
        (Settings(), "localhost:8000@rebound.example", 421),
        (Settings(host="0.0.0.0"), "rebound.example", 200),
        (Settings(api_key=SecretStr(KEY)), "rebound.example", 200),
        (Settings(allowed_hosts="coevo.lan, other"), "coevo.lan:80", 200),
        (Settings(allowed_hosts="coevo.lan, other"), "localhost", 421),
        (Settings(host="0.0.0.0", allowed_hosts="coevo.lan"), "rebound.example", 421),
    ],
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(routes, settings, host, status):
    """A page of rebound.example could else have a browser on this machine ask for it."""
    answer = ask(HostCheck(routes, hosts_of(settings)), "GET", "/adapters", headers={"host": host})
    assert answer.status_code == status
    assert bool(routes.state.entered) == (status == 200)


def test_a_head_that_is_too_large_is_refused(routes):
    limited = HeadLimit(routes, 1000)
    assert ask(limited, "GET", "/adapters", headers={"x": "a" * 500}).status_code == 200
    for headers, path in (({"x": "a" * 1000}, "/adapters"), ({}, "/adapters?" + "a" * 1000)):
        refused = ask(limited, "GET", path, headers=headers)
        assert (refused.status_code, refused.json()["type"]) == (431, "too-large")
