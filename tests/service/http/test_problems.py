import asyncio

import httpx
import pytest
from fastapi import FastAPI

from adapters.errors import UserError
from service.http.problems import ProblemError, install
from service.media import MediaError
from service.schemas import LogprobsRequest, Problem


@pytest.fixture
def app():
    app = FastAPI()
    install(app)

    @app.post("/logprobs")
    async def logprobs(request: LogprobsRequest) -> int:
        return len(request.sequences)

    return app


def raising(app, error):
    @app.get("/fails")
    async def fails():
        raise error


def ask(app, method, path, *, raise_bugs=False, **more):
    async def once():
        transport = httpx.ASGITransport(app, raise_app_exceptions=raise_bugs)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **more)

    return asyncio.run(once())


def problem_of(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == answer.status_code
    return problem


def test_a_problem_tells_its_type_and_what_stands_beside_it(app):
    raising(app, ProblemError("stale-parent", 409, "text is at 17; publish 18", head=17))
    problem = problem_of(ask(app, "GET", "/fails"))
    assert problem.model_dump() == {
        "type": "stale-parent",
        "title": "Conflict",
        "status": 409,
        "detail": "text is at 17; publish 18",
        "head": 17,
    }


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (1.2, "2"), (30, "30")])
def test_a_wait_is_told_in_whole_seconds(app, wait_s, header):
    raising(app, ProblemError("busy", 429, "full", retry_after_s=wait_s))
    assert ask(app, "GET", "/fails").headers["retry-after"] == header


@pytest.mark.parametrize(
    ("reason", "status", "slug"),
    [
        ("unsupported", 415, "unsupported-media"),
        ("too-large", 413, "too-large"),
        ("damaged", 422, "damaged-media"),
    ],
)
def test_a_refused_image_has_the_status_of_its_reason(app, reason, status, slug):
    raising(app, MediaError("the image is no good", reason))
    problem = problem_of(ask(app, "GET", "/fails"))
    assert (problem.status, problem.type, problem.detail) == (status, slug, "the image is no good")


def test_a_users_error_is_told(app):
    raising(app, UserError("r: rank 7 is too much; take 4"))
    problem = problem_of(ask(app, "GET", "/fails"))
    assert (problem.status, problem.type, problem.detail) == (422, "invalid", "r: rank 7 is too much; take 4")


def test_a_bug_is_not_told_but_raised_to_the_server(app):
    raising(app, RuntimeError("secret at 0x7f00"))
    answer = ask(app, "GET", "/fails")
    assert problem_of(answer).type == "internal"
    assert "secret" not in answer.text
    with pytest.raises(RuntimeError, match="secret"):
        ask(app, "GET", "/fails", raise_bugs=True)


def test_unknown_routes_and_methods_are_problems(app):
    assert problem_of(ask(app, "GET", "/../etc/passwd")).type == "not-found"
    answer = ask(app, "GET", "/logprobs")
    assert problem_of(answer).type == "method-not-allowed"
    assert answer.headers["allow"] == "POST"


SECRET = "sesame-open-up"


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"sequences": SECRET}, ["body", "sequences"]),
        (
            {"sequences": [{"prompt": [SECRET], "completion": []}]},
            ["body", "sequences", 0, "prompt", "list[constrained-int]", 0],
        ),
        (
            {"sequences": [{"prompt": [-1], "completion": []}]},
            ["body", "sequences", 0, "prompt", "list[constrained-int]", 0],
        ),
        ({"sequences": [], "misspelt": SECRET}, ["body", "misspelt"]),
        (
            {"sequences": [{"prompt": [1], "completion": [], "images": [{"a": SECRET}]}]},
            ["body", "sequences", 0, "images", 0],
        ),
    ],
)
def test_an_invalid_body_is_told_by_place_without_its_content(app, body, loc):
    answer = ask(app, "POST", "/logprobs", json=body)
    problem = problem_of(answer)
    assert (problem.status, problem.type) == (422, "invalid")
    assert loc in [error["loc"] for error in answer.json()["errors"]]
    assert SECRET not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"sequences": NaN}',
        b'{"sequences": [], "top_k": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"\x1f\x8b\x08\x00sesame",
    ],
    ids=["empty", "cut off", "NaN", "infinity", "deep list", "deep object", "no text", "gzip"],
)
def test_broken_json_is_the_senders_fault(app, body):
    answer = ask(app, "POST", "/logprobs", content=body, headers={"content-type": "application/json"})
    assert problem_of(answer).status in (400, 422)
    assert len(answer.content) < 2000


def test_a_wrong_content_type_is_the_senders_fault(app):
    answer = ask(app, "POST", "/logprobs", content=b'{"sequences": []}', headers={"content-type": "text/plain"})
    assert problem_of(answer).status == 422


def test_a_million_errors_make_a_short_answer(app):
    body = {"sequences": [{"prompt": [-1] * 100_000, "completion": []}], "x" * 100_000: 1}
    answer = ask(app, "POST", "/logprobs", json=body)
    assert problem_of(answer).status == 422
    assert len(answer.content) < 20_000
