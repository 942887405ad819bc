"""Is the process up, does the engine answer, what has it counted."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from service.health import ask_canary
from service.http.metrics import CONTENT_TYPE
from service.http.problems import ProblemError
from service.state import ServiceState

router = APIRouter(tags=["health"])

CANARY_S = 5.0


@router.get("/healthz")
async def healthz() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n")


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """The engine scores a canary, past the queue."""
    door: ServiceState = request.app.state.door
    if door.engine.dead:
        raise ProblemError("not-ready", 503, "the engine is dead", retry_after_s=5)
    if door.admission.stalled_s() > door.settings.frozen_s:
        raise ProblemError("not-ready", 503, "requests wait and nothing finishes", retry_after_s=5)
    canary, ping = asyncio.create_task(ask_canary(door)), asyncio.create_task(door.engine.ping())
    try:
        async with asyncio.timeout(CANARY_S):
            await canary
    except TimeoutError:
        if not ping.done():  # else it is only busy
            raise ProblemError("not-ready", 503, "the engine does not answer", retry_after_s=5) from None
    finally:
        ping.cancel()
    return PlainTextResponse("ready\n")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    door: ServiceState = request.app.state.door
    door.metrics.resident.set(len(door.registry.users))
    return Response(door.metrics.render(), media_type=CONTENT_TYPE)
