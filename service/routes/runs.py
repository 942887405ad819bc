"""`/runs`: how far runs have come, what they tell while they go on, and the rollouts of every step."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response, StreamingResponse

from service import schemas
from service.http.problems import ProblemError
from service.routes.adapters import Branch, Revision
from service.runs import RUN_PATTERN, Runs
from service.state import State

router = APIRouter(tags=["runs"])

Run = Annotated[str, PathParameter(pattern=RUN_PATTERN)]
After = Annotated[int, Query(ge=0, le=2**53)]
LastEventId = Annotated[int | None, Header(ge=0, le=2**53)]

KEEP_ALIVE_S = 15.0  # proxies close connections that are silent for a minute, some earlier
_COMPRESSION = 1  # the fastest: a step's rollouts are packed while somebody waits
_GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say gzip's header and not its own

_ROLLOUTS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/StepRollouts"}}},
    }
}


@router.get("/runs")
async def runs(state: State) -> schemas.RunsResponse:
    """Every run that has told something."""
    return schemas.RunsResponse(runs=state.runs.infos())


@router.get("/runs/{run}")
async def run(run: Run, state: State) -> schemas.RunInfo:
    """A run: how far it is."""
    return _known(state.runs, run)


@router.get("/runs/{run}/events", response_class=StreamingResponse)
async def events(run: Run, state: State, after: After = 0, last_event_id: LastEventId = None) -> Response:
    """What the run has told, and then what it tells, as server-sent events numbered from 1. `Last-Event-ID`, or else
    `after`, says which was the last that the caller has seen."""
    _known(state.runs, run)
    # A browser that comes back sends the header beside the address that it began with.
    lines = follow(state.runs, run, after if last_event_id is None else last_event_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # nginx would hold events back otherwise
    return StreamingResponse(lines, headers=headers, media_type="text/event-stream")


async def follow(runs: Runs, run: str, after: int, *, keep_alive_s: float = KEEP_ALIVE_S) -> AsyncGenerator[str]:
    """For ever, or until the service stops."""
    position = await asyncio.to_thread(runs.seek, run, after)
    while not runs.is_closed:
        news = runs.news  # before looking: what comes meanwhile sets it
        if runs.has_more(run, position):
            number = position.number
            lines, position = await asyncio.to_thread(runs.read, run, position)
            yield "".join(f"id: {number + i}\ndata: {line}\n\n" for i, line in enumerate(lines, 1))
            continue
        try:
            async with asyncio.timeout(keep_alive_s):
                await news.wait()
        except TimeoutError:
            yield ": nothing new\n\n"


@router.put("/runs/{run}/rollouts/{branch}/{step}", status_code=204, openapi_extra=_ROLLOUTS_BODY)
async def put_rollouts(run: Run, branch: Branch, step: Revision, request: Request, state: State) -> Response:
    """Keep a step's rollouts. The body may be packed (`Content-Encoding: gzip`); sent again, it replaces the first."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise ProblemError("invalid", 422, "Content-Encoding: send gzip, or none")
    body = await request.body()
    packed = await asyncio.to_thread(_check, body, encoding == "gzip", state.settings.body_bytes, (run, branch, step))
    await asyncio.to_thread(state.runs.put_rollouts, run, branch, step, packed)
    return Response(status_code=204)


@router.get("/runs/{run}/rollouts/{branch}/{step}", responses={200: {"model": schemas.StepRollouts}})
async def rollouts(run: Run, branch: Branch, step: Revision, request: Request, state: State) -> Response:
    """A step's rollouts."""
    packed = await asyncio.to_thread(state.runs.rollouts, run, branch, step)
    if packed is None:
        raise ProblemError("unknown-run", 404, f"{run} has no rollouts of step {step} of {branch}")
    headers = {"vary": "Accept-Encoding"}
    if _takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(packed, headers=headers | {"content-encoding": "gzip"}, media_type="application/json")
    return Response(await asyncio.to_thread(gzip.decompress, packed), headers=headers, media_type="application/json")


def _known(runs: Runs, run: str) -> schemas.RunInfo:
    info = runs.info(run)
    if info is None:
        raise ProblemError("unknown-run", 404, f"there is no run {run}; /runs lists them")
    return info


def _check(body: bytes, is_packed: bool, limit: int, name: tuple[str, str, int]) -> bytes:
    """The body as it is kept, when it is what the schema says and of the step that the path names."""
    plain = _unpack(body, limit) if is_packed else body
    try:
        rollouts = schemas.StepRollouts.model_validate_json(plain, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        # As FastAPI does for a body that it reads itself.
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in errors]) from None
    if (rollouts.run, rollouts.branch, rollouts.step) != name:
        raise ProblemError("invalid", 422, "run, branch, step: not those of the path")
    return body if is_packed else gzip.compress(plain, _COMPRESSION)


def _unpack(body: bytes, limit: int) -> bytes:
    """A single gzip file, inflated no further than to the limit."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise ProblemError("bad-request", 400, "the body is not gzip, but Content-Encoding says so") from None
    if len(plain) > limit:
        raise ProblemError("too-large", 413, f"the body unpacked is larger than {limit} bytes")
    if not inflater.eof or inflater.unused_data:  # a second file behind it would be read by some and not by others
        raise ProblemError("bad-request", 400, "the body is not one whole gzip file")
    return plain


def _takes_gzip(accepted: str) -> bool:
    """`gzip;q=0` is a no."""
    for item in accepted.lower().split(","):
        coding, _, quality = item.replace(" ", "").partition(";")
        if coding in ("gzip", "*") and quality not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return True
    return False
