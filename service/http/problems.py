"""Errors over HTTP: RFC 9457 problem+json with a stable `type`.

A body never holds a library's words, a path of this machine or what was sent: they may carry addresses, keys, images.
What is ours to say (`ProblemError`, `UserError`) is said; everything else gets a fixed sentence, and an unexpected
exception goes on to the server, whose log holds the traceback.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from adapters.errors import UserError
from service.media import MediaError
from service.schemas import Problem

MEDIA_TYPE = "application/problem+json"

Slug = Literal[
    "bad-request",
    "branch-exists",
    "busy",
    "canary",
    "damaged-media",
    "disk-full",
    "fenced",
    "head-revision",
    "internal",
    "invalid",
    "invalid-adapter",
    "media-reference",
    "method-not-allowed",
    "not-found",
    "not-ready",
    "other-base",
    "queue-away",
    "retired-adapter",
    "revision-exists",
    "stale-parent",
    "too-large",
    "too-slow",
    "unauthorised",
    "unknown-adapter",
    "unknown-media",
    "unknown-run",
    "unsupported-media",
]

_MEDIA: dict[str, tuple[Slug, HTTPStatus]] = {
    "unsupported": ("unsupported-media", HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
    "too-large": ("too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    "damaged": ("damaged-media", HTTPStatus.UNPROCESSABLE_ENTITY),
}
_HTTP: dict[int, tuple[Slug, str]] = {
    400: ("bad-request", "the body cannot be read; send what the route's schema says"),
    401: ("unauthorised", "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
    404: ("not-found", "no such route; /docs lists them"),
    405: ("method-not-allowed", "this route has other methods; the header Allow names them"),
    408: ("too-slow", "the body came too slowly"),
    413: ("too-large", "the body is larger than this route takes; /adapters tells the limits"),
}
_MOST_ERRORS = 20
_LONGEST_WORD = 64
_LONGEST_MESSAGE = 200


class ProblemError(Exception):
    """An answer that is an error. `detail` is for people; `more` stands beside it, for programs."""

    def __init__(self, type: Slug, status: int, detail: str, *, retry_after_s: float | None = None, **more: Any):
        super().__init__(f"{type}: {detail}")
        self.type: Slug = type
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.more = more


def install(app: FastAPI) -> None:
    """Every error of `app`'s routes as problem+json."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(UserError, _on_user_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


def response(problem: ProblemError) -> JSONResponse:
    """Retry-After is whole seconds, at least one."""
    wait = problem.retry_after_s
    headers = {} if wait is None else {"retry-after": str(max(1, math.ceil(wait)))}
    return _json(problem.type, problem.status, problem.detail, headers, **problem.more)


def http_response(status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """For a status alone, with the fixed sentence that goes with it."""
    slug, detail = _HTTP.get(status, ("bad-request" if status < 500 else "internal", HTTPStatus(status).description))
    return _json(slug, status, detail, headers)


def _json(type: Slug, status: int, detail: str, headers: Mapping[str, str] | None = None, **more: Any) -> JSONResponse:
    problem = Problem(type=type, title=HTTPStatus(status).phrase, status=status, detail=detail, **more)
    return JSONResponse(problem.model_dump(mode="json"), status, headers, MEDIA_TYPE)


async def _on_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return response(error)


async def _on_user_error(_: Request, error: Exception) -> JSONResponse:
    if isinstance(error, MediaError):
        slug, status = _MEDIA[error.reason]
        return _json(slug, status, str(error))
    return _json("invalid", HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


async def _on_invalid_request(_: Request, error: Exception) -> JSONResponse:
    """Where and what, never the input; a body of a million bad ids does not make a million lines."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    told = [{"loc": [_word(part) for part in one["loc"]], "msg": _message(one)} for one in found[:_MOST_ERRORS]]
    where = ".".join(str(part) for part in told[0]["loc"])
    also = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return _json("invalid", HTTPStatus.UNPROCESSABLE_ENTITY, f"{where}: {told[0]['msg']}{also}", errors=told)


def _word(part: str | int) -> str | int:
    """A misspelt key is told, a text that was put there is not."""
    return part if isinstance(part, int) else "".join(c if c.isprintable() else "?" for c in part[:_LONGEST_WORD])


def _message(error: Mapping[str, Any]) -> str:
    """Messages of pydantic's own types are fixed sentences; those of a parser may quote."""
    if error["type"] in ("json_invalid", "value_error"):
        return "not valid JSON" if error["type"] == "json_invalid" else "not a valid value"
    return str(error["msg"])[:_LONGEST_MESSAGE]


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return http_response(error.status_code, error.headers)


async def _on_bug(_: Request, error: Exception) -> JSONResponse:
    return _json("internal", HTTPStatus.INTERNAL_SERVER_ERROR, "the service failed; its log says why")
