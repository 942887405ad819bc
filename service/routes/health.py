"""Is the process up, does the engine answer, what has it counted."""

import asyncio

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from service.health import ask_canary
from service.http.metrics import CONTENT_TYPE
from service.http.problems import ProblemError
from service.state import State

router = APIRouter(tags=["health"])

CANARY_S = 5.0  # a canary that waits longer says nothing yet: the engine may be busy


@router.get("/healthz")
async def healthz() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def readyz(state: State) -> Response:
    """Every core of the engine scores a canary, past the queue, and there is room for the next revision."""
    if (dead := state.engine.dead) is not None:
        raise ProblemError("not-ready", 503, dead, retry_after_s=5)
    # The engine may answer pings and compute nothing, or readers may hold on to it: then its requests tell.
    admission = state.admission
    if admission.closed_s() > state.settings.max_closed_s:
        words = f"nobody was let in and nothing has finished for {admission.closed_s():.0f} s"
        detail = f"{words}; {admission.requests} requests are in the engine, {admission.waiting} wait"
        raise ProblemError("not-ready", 503, detail, retry_after_s=5)
    free, needed = await asyncio.to_thread(state.store.room)
    if free < needed:
        words = f"the store has {free >> 20} MiB of disk left, a revision like the newest takes {(needed >> 20) + 1}"
        raise ProblemError("not-ready", 503, f"{words}; free some, reads go on", retry_after_s=5)
    canary, ping = asyncio.create_task(ask_canary(state.engine)), asyncio.create_task(state.engine.ping())
    try:
        async with asyncio.timeout(CANARY_S):
            await canary
    except TimeoutError:
        if not ping.done():  # else it is only busy
            words = f"the engine does not answer{state.engine.silent}"
            raise ProblemError("not-ready", 503, words, retry_after_s=5) from None
    finally:
        ping.cancel()
    return PlainTextResponse("ready\n")


@router.get("/metrics")
async def metrics(state: State) -> Response:
    """For Prometheus."""
    state.metrics.resident.set(len(state.registry.users))
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)
