"""Errors over HTTP: RFC 9457 problem+json with a stable `type`.

A body never holds a library's words, a path of this machine or what was sent: they may carry addresses, keys, images.
What is ours to say (`ProblemError`, `UserError`) is said; everything else gets a fixed sentence, and an unexpected
exception goes on to the server, whose log holds the traceback.
"""

import math
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

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

_MEDIA: dict[str, tuple[Slug, int]] = {
    "unsupported": ("unsupported-media", 415),
    "too-large": ("too-large", 413),
    "damaged": ("damaged-media", 422),
}
_HTTP: dict[int, tuple[Slug, str]] = {
    400: ("bad-request", "the body cannot be read; send what the route's schema says"),
    401: ("unauthorised", "send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`"),
    404: ("not-found", "no such route; /docs lists them"),
    405: ("method-not-allowed", "this route has other methods; the header Allow names them"),
    408: ("too-slow", "the body came too slowly"),
    413: ("too-large", "the body is larger than this route takes; /adapters tells the limits"),
}
# A body of a million bad ids has a million errors, and a misspelt key may be a whole text: an answer stays short.
_MOST_ERRORS = 20
_LONGEST_KEY = 64
_LONGEST_MESSAGE = 200
# Messages of pydantic's own types are fixed sentences; a parser's or a validator's may quote what was sent.
_FIXED_MESSAGES = {"json_invalid": "not valid JSON", "value_error": "not a valid value"}


class ProblemError(Exception):
    """An answer that is an error. `detail` is for people; `more` stands beside it, for programs."""

    def __init__(
        self,
        type: Slug,
        status: int,
        detail: str,
        *,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(f"{type}: {detail}")
        self.type: Slug = type
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.more = more


ProblemTable: TypeAlias = Mapping[type[Exception], Callable[[Any], ProblemError]]
"""How kinds of errors are answered. A subclass is answered as the nearest class that the table has."""


def install(app: FastAPI, more: ProblemTable | None = None) -> None:
    """Every error of `app`'s routes as problem+json; `more` are the kinds that only the caller knows."""
    table = {**_PROBLEMS, **(more or {})}

    async def answer(_: Request, error: Exception) -> JSONResponse:
        nearest = next(kind for kind in type(error).__mro__ if kind in table)
        return response(table[nearest](error))

    for kind in table:
        app.add_exception_handler(kind, answer)


def response(problem: ProblemError) -> JSONResponse:
    title = HTTPStatus(problem.status).phrase
    body = Problem(type=problem.type, title=title, status=problem.status, detail=problem.detail, **problem.more)
    headers = dict(problem.headers or {})
    if problem.retry_after_s is not None:  # HTTP has whole seconds only, and 0 would mean at once
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_s)))
    return JSONResponse(body.model_dump(mode="json"), problem.status, headers, MEDIA_TYPE)


def http_problem(status: int, headers: Mapping[str, str] | None = None) -> ProblemError:
    """For a status alone, with the fixed sentence that goes with it."""
    slug, detail = _HTTP.get(status, ("bad-request" if status < 500 else "internal", HTTPStatus(status).description))
    return ProblemError(slug, status, detail, headers=headers)


def _invalid_request(error: RequestValidationError) -> ProblemError:
    """Where and what, never the input."""
    all_errors = error.errors()
    errors: list[dict[str, Any]] = []
    for item in all_errors[:_MOST_ERRORS]:
        location: list[str | int] = []
        for part in item["loc"]:
            if isinstance(part, str):  # a misspelt key is told, a text that was put there is not
                part = "".join(c if c.isprintable() else "?" for c in part[:_LONGEST_KEY])
            location.append(part)
        message = _FIXED_MESSAGES.get(item["type"], str(item["msg"])[:_LONGEST_MESSAGE])
        errors.append({"loc": location, "msg": message})
    where = ".".join(str(part) for part in errors[0]["loc"])
    rest = f", and {len(all_errors) - 1} more" if len(all_errors) > 1 else ""
    return ProblemError("invalid", 422, f"{where}: {errors[0]['msg']}{rest}", errors=errors)


_PROBLEMS: ProblemTable = {
    ProblemError: lambda error: error,
    RequestValidationError: _invalid_request,
    MediaError: lambda error: ProblemError(*_MEDIA[error.reason], str(error)),
    UserError: lambda error: ProblemError("invalid", 422, str(error)),
    HTTPException: lambda error: http_problem(error.status_code, error.headers),
    # Starlette sends this answer and raises the error again, so the server's log has the traceback.
    Exception: lambda _: ProblemError("internal", 500, "the service failed; its log says why"),
}
