"""`coevo look`: the page over files alone, or over another service; nothing can be changed through it.

Over a folder there is no engine: the routes that read files answer, every other one is 404. Over an address each GET is
passed on with the key that this process has, so that the browser needs none. Left out: whoever may reach this port.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.files import RunFiles
from service.http import problems
from service.http.problems import http_problem, response
from service.routes import history, page, rollouts, runs
from service.runs import Runs

LOOK_S = 1.0
"""Between two looks at a folder that another process may be writing into."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_PASSED_ON = frozenset({"accept", "last-event-id"})
_PASSED_BACK = frozenset({"content-type", "x-accel-buffering", "cache-control", "x-problem-type"})


@dataclass(frozen=True, slots=True)
class _Looked:
    """What the routes of runs need of a service's state."""

    runs: Runs


def folder_app(folder: Path, base: str | None) -> ASGIApp:
    """The page over OUT of `coevo run`, which has `runs` and `store`."""
    looked = Runs(folder / "runs", is_read_only=True)

    @asynccontextmanager
    async def watch(_: FastAPI) -> AsyncGenerator[None]:
        async def keep_looking() -> None:
            while True:
                await asyncio.sleep(LOOK_S)
                if await asyncio.to_thread(looked.look):
                    looked.announce()

        watching = asyncio.create_task(keep_looking())
        yield
        watching.cancel()

    app = FastAPIOffline(title="coevo look", redoc_url=None, lifespan=watch)
    problems.install(app)
    for module in (page, history, rollouts, runs):
        app.include_router(module.router)
    # Both states: routes of runs are the service's own, and look for their runs there.
    app.state.files = RunFiles(looked, folder / "runs", folder / "store", base, is_read_only=True)
    app.state.service = _Looked(looked)
    return _ReadOnly(app)


class _ReadOnly:
    """405 for every method that changes something."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            await response(http_problem(405, {"allow": "GET, HEAD"}), scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def remote_app(url: str, key: str | None) -> ASGIApp:
    """The page of this package over what another service answers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # Without a limit on reading: events come when there are any.
    client = httpx.AsyncClient(base_url=url, headers=headers, timeout=httpx.Timeout(10, read=None))
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    problems.install(app)

    # Before everything else: the page is this package's, not that of the service, which may be older.
    @app.get("/")
    async def index() -> Response:
        return await page.index()

    @app.get("/page/{name}")
    async def static(name: str) -> Response:
        return await page.static(name)

    async def ask(path: str, request: Request) -> httpx.Response:
        sent = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
        query = request.url.query
        # The browser's own headers stay here: cookies and addresses of this machine are none of the service's business.
        built = client.build_request("GET", f"/{path}" + (f"?{query}" if query else ""), headers=sent)
        try:
            return await client.send(built, stream=True)
        except httpx.TransportError:
            raise problems.ProblemError("not-ready", 503, f"{url} does not answer", retry_after_s=5) from None

    @app.get("/palette")
    async def palette(request: Request) -> Response:
        answer = await ask("palette", request)
        await answer.aread()
        # The page offers nothing that this door refuses.
        return JSONResponse(answer.json() | {"is_read_only": True}, answer.status_code)

    @app.get("/{path:path}")
    async def passed_on(path: str, request: Request) -> Response:
        answer = await ask(path, request)
        passed_back = {name: value for name, value in answer.headers.items() if name in _PASSED_BACK}
        return StreamingResponse(_body(answer), answer.status_code, passed_back)

    return _ReadOnly(app)


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    except httpx.TransportError:
        return  # it was stopped: the page asks again with the number of the last event
    finally:
        await answer.aclose()
