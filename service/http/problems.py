"""Errors over HTTP: RFC 9457 problem+json with a stable `type`; under `/v1` the same in OpenAI's shape.

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
TYPE_HEADER = "x-problem-type"
"""Stands on every error of ours in both shapes: vLLM's own errors, under `/v1`, have none."""

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
    "not-finite",
    "not-found",
    "not-ready",
    "other-base",
    "other-host",
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
    421: ("other-host", "this is another service than the one that was asked for; --allowed-hosts names this one"),
    431: ("too-large", "the path and the headers are larger than --head-bytes"),
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

    async def answer(request: Request, error: Exception) -> JSONResponse:
        nearest = next(kind for kind in type(error).__mro__ if kind in table)
        return response(table[nearest](error), request.url.path)

    for kind in table:
        app.add_exception_handler(kind, answer)


def response(problem: ProblemError, path: str) -> JSONResponse:
    """The answer to a request of `path`, in the shape that its callers know."""
    headers = {**(problem.headers or {}), TYPE_HEADER: problem.type}
    if problem.retry_after_s is not None:  # HTTP has whole seconds only, and 0 would mean at once
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after_s)))
    if path.startswith("/v1/"):
        return JSONResponse({"error": _openai_error(problem)}, problem.status, headers)
    title = HTTPStatus(problem.status).phrase
    body = Problem(type=problem.type, title=title, status=problem.status, detail=problem.detail, **problem.more)
    return JSONResponse(body.model_dump(mode="json"), problem.status, headers, MEDIA_TYPE)


def _openai_error(problem: ProblemError) -> dict[str, Any]:
    """What OpenAI's clients read into `error.type`, `.code` and `.param`. The class they raise goes by the status."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(problem.status, "invalid_request_error")
    return {
        **problem.more,
        "message": problem.detail,
        "type": kind if problem.status < 500 else "server_error",
        "code": problem.type,
        "param": "model" if problem.type in ("unknown-adapter", "retired-adapter") else None,
    }


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
