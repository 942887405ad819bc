"""Errors under `/v1`: OpenAI's own client reads them, and raises its own classes."""

import asyncio
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.http.auth import ApiKey, BodyLimit
from service.http.problems import ProblemError, install

CHAT: Any = {"model": "nobody", "messages": [{"role": "user", "content": "37+2?"}]}


def error_of(*, raises: Exception | None = None, key: str | None = None, limit: int = 10_000) -> openai.APIStatusError:
    """What the client raises when it chats with a service that answers so."""
    app = FastAPI()
    install(app)

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> None:
        if raises is not None:
            raise raises

    guarded: Any = ApiKey(BodyLimit(app, limit, {}), None if key is None else SecretStr(key))

    async def ask() -> openai.APIStatusError:
        transport = httpx2.ASGITransport(guarded, raise_app_exceptions=False)
        http = httpx2.AsyncClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://service/v1", api_key="wrong", http_client=http, max_retries=0
        ) as client:
            with pytest.raises(openai.APIStatusError) as error:
                await client.chat.completions.create(**CHAT)
            return error.value

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("problem", "kind", "type", "param"),
    [
        (ProblemError("bad-request", 400, "no JSON"), openai.BadRequestError, "invalid_request_error", None),
        (ProblemError("unknown-adapter", 404, "nobody"), openai.NotFoundError, "invalid_request_error", "model"),
        (ProblemError("invalid", 422, "n is a number"), openai.UnprocessableEntityError, "invalid_request_error", None),
        (ProblemError("busy", 429, "full"), openai.RateLimitError, "rate_limit_error", None),
        (ProblemError("not-ready", 503, "dead"), openai.InternalServerError, "server_error", None),
    ],
)
def test_every_problem_is_an_error_of_openais_own(problem: ProblemError, kind: type, type: str, param: str) -> None:
    error = error_of(raises=problem)
    assert isinstance(error, kind)
    assert (error.type, error.code, error.param) == (type, problem.type, param)
    assert problem.detail in error.message


def test_a_bug_of_ours_says_nothing_of_itself() -> None:
    error = error_of(raises=RuntimeError("secret"))
    assert isinstance(error, openai.InternalServerError)
    assert (error.code, "secret" in error.message) == ("internal", False)


def test_what_stands_before_the_routes_answers_in_the_same_shape() -> None:
    refused = error_of(key="right")
    assert isinstance(refused, openai.AuthenticationError)
    assert (refused.code, refused.type) == ("unauthorised", "authentication_error")
    assert error_of(limit=10).code == "too-large"
