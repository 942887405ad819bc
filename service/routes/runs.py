"""`/runs`: how far runs have come, what they tell while they go on, and the rollouts of every step."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, Response, StreamingResponse

from adapters.names import shown
from service import schemas
from service.http.problems import ProblemError
from service.rollouts import Record, RecordError
from service.routes.adapters import Branch, Revision
from service.runs import RUN_PATTERN, Runs
from service.state import State

router = APIRouter(tags=["runs"])

Run = Annotated[str, PathParameter(pattern=RUN_PATTERN)]
After = Annotated[int, Query(ge=0, le=2**53)]
Keep = Annotated[int | None, Query(ge=1, le=2**53)]
LastEventId = Annotated[int | None, Header(ge=0, le=2**53)]

KEEP_ALIVE_S = 15.0  # proxies close connections that are silent for a minute, some earlier
_PAGE_TOKENS = 50_000
"""Tokens of completions in one page of rollouts, about 3 MB of JSON. A prompt with more is a page by itself."""
_CHUNK = 2**20
"""Bytes that are gathered before a thread writes them: changing threads costs more than a few thousand bytes."""

_RECORD: dict[str, Any] = {
    schemas.SAFETENSORS: {"schema": {"type": "string", "format": "binary"}, "example": "@record.safetensors"}
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


@router.get("/runs/{run}/rollouts")
async def kept_rollouts(run: Run, state: State) -> schemas.RolloutsIndex:
    """The steps whose rollouts are kept."""
    return schemas.RolloutsIndex(branches=await asyncio.to_thread(state.runs.recorded_steps, run))


@router.put(
    "/runs/{run}/rollouts/{branch}/{step}", openapi_extra={"requestBody": {"required": True, "content": _RECORD}}
)
async def put_rollouts(
    run: Run, branch: Branch, step: Revision, request: Request, state: State, keep: Keep = None
) -> schemas.RolloutsKept:
    """Keep a step's record; sent again, it replaces the first. With `keep`, so many steps of the branch stay."""
    with state.runs.receive_rollouts(run, branch, step) as file:
        chunk = bytearray()
        async for piece in request.stream():
            chunk += piece
            if len(chunk) >= _CHUNK:
                await asyncio.to_thread(file.write, bytes(chunk))
                chunk.clear()
        await asyncio.to_thread(file.write, bytes(chunk))
        file.flush()
        await asyncio.to_thread(_check, Path(file.name), (run, branch, step))
    removed = [] if keep is None else await asyncio.to_thread(state.runs.trim_rollouts, run, branch, step, keep)
    return schemas.RolloutsKept(removed=removed)


def _check(path: Path, name: tuple[str, str, int]) -> None:
    record = Record(path)
    record.check()
    if (record.head.run, record.head.branch, record.head.step) != name:
        raise RecordError("run, branch, step: not those of the path")


@router.get(
    "/runs/{run}/rollouts/{branch}/{step}",
    responses={200: {"model": schemas.StepRollouts, "content": _RECORD}},
)
async def rollouts(
    run: Run,
    branch: Branch,
    step: Revision,
    request: Request,
    state: State,
    part: str | None = None,
    first: Annotated[int, Query(ge=0, le=2**53)] = 0,
    count: Annotated[int, Query(ge=1, le=1024)] = 16,
) -> Response:
    """A page of a step's rollouts: some prompts of one part, or of each. Or all of it, as safetensors."""
    path = state.runs.rollouts(run, branch, step)
    if not await asyncio.to_thread(path.exists):
        steps = (await asyncio.to_thread(state.runs.recorded_steps, run)).get(branch, [])
        hint = f"; it has those of {', '.join(map(str, steps))}" if steps else ""
        raise ProblemError("unknown-run", 404, f"{run} has no rollouts of step {step} of {branch}{hint}")
    headers = {"vary": "Accept"}
    if schemas.SAFETENSORS in request.headers.get("accept", ""):
        return FileResponse(path, headers=headers, media_type=schemas.SAFETENSORS)
    text = await asyncio.to_thread(lambda: read_page(Record(path), part, first, count).model_dump_json())
    return Response(text, headers=headers, media_type="application/json")


def read_page(record: Record, part: str | None, first: int, count: int) -> schemas.StepRollouts:
    """A page so small that nobody waits for the interpreter."""
    page = record.page(part, first, count, _PAGE_TOKENS)
    if not page.parts:
        names = ", ".join(head.name for head in record.head.parts)
        raise ProblemError("not-found", 404, f"part {shown(part or '')}: there is none of that name; it has {names}")
    return page


def _known(runs: Runs, run: str) -> schemas.RunInfo:
    info = runs.info(run)
    if info is None:
        raise ProblemError("unknown-run", 404, f"there is no run {run}; /runs lists them")
    return info
