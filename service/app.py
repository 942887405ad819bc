"""The service as one ASGI application: opens the store and the engine, then answers.

Outermost stand the clock, the key and the limits of bodies; then the routes of this package. vLLM's own application
is behind `routes.openai` alone, so none of its other routes can be reached.
"""

import asyncio
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.types import ASGIApp

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest, folder_digest
from adapters.names import BASE, is_name, shown
from adapters.store import DiskFullError, Store
from adapters.validate import BOUNDS, BaseShape, InvalidAdapterError, WeightBounds, base_shape, check_adapter
from service.concurrency import gather_or_cancel
from service.engine.arguments import CACHED_ADAPTERS
from service.engine.finite import NotFiniteError
from service.engine.vllm import URGENT, Engine, EngineDiedError, EngineMedia, LoadedAdapter, start_engine
from service.faults import RESTARTS_VARIABLE
from service.files import RunFiles
from service.http import problems
from service.http.admission import Admission
from service.http.auth import OPEN_PATHS, ApiKey, BodyLimit, HeadLimit, HostCheck, hosts_of
from service.http.bodies import Bodies
from service.http.metrics import Metrics, Timed
from service.http.problems import ProblemError
from service.inputs import Decoder
from service.media import Pixels, Sampling, Sizing
from service.mediastore import MediaStore
from service.publishing.decisions import PublishRefusedError
from service.publishing.fence import QueueFence, fenced_by_queue
from service.publishing.publisher import Publisher
from service.publishing.registry import Extra, Registry, UnavailableError
from service.routes import adapters, health, history, jobs, media, merged, openai, page, rollouts, runs, scores
from service.runs import Runs
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from service.scoring import Scorer
from service.settings import MediaNumbers, Settings
from service.state import ServiceState

_REFUSED_STATUS = {"invalid": 422, "other-base": 422, "canary": 422, "too-large": 413}  # every other kind: 409
_PROBLEMS: problems.ProblemTable = {
    UnavailableError: lambda error: ProblemError(
        error.kind, 404 if error.kind == "unknown-adapter" else 410, str(error)
    ),
    PublishRefusedError: lambda error: ProblemError(
        error.kind, _REFUSED_STATUS.get(error.kind, 409), str(error), **error.members
    ),
    DiskFullError: lambda error: ProblemError("disk-full", 507, str(error)),
    NotFiniteError: lambda error: ProblemError("not-finite", 503, str(error), retry_after_s=1),
    EngineDiedError: lambda _: ProblemError("not-ready", 503, "the engine gave it up; ask again", retry_after_s=5),
    TimeoutError: lambda _: ProblemError("busy", 503, "the engine took too long", retry_after_s=5),
}


def routes() -> FastAPI:
    """All routes and their schema, without a state yet."""
    # /docs with the page's own files: a machine that trains may reach no other host.
    app = FastAPIOffline(
        title="coevo", description="One frozen base, many adapters, exact log-probabilities.", redoc_url=None
    )
    problems.install(app, _PROBLEMS)
    for module in (scores, adapters, runs, history, merged, rollouts, jobs, media, openai, health, page):
        app.include_router(module.router)
    return app


def build_app(state: ServiceState) -> ASGIApp:
    app = routes()
    app.state.service = state
    settings = state.settings
    app.state.files = RunFiles(state.runs, settings.runs, settings.store, settings.base)
    # Inside out: the key is asked for before a byte of a body is read, and the clock sees what both refuse.
    uploads = {"/adapters/": settings.upload_bytes, "/runs/": settings.record_bytes}
    guarded: Any = BodyLimit(app, settings.body_bytes, uploads)
    guarded = ApiKey(guarded, settings.api_key, {*OPEN_PATHS, *page.open_paths()})
    guarded = HeadLimit(HostCheck(guarded, hosts_of(settings)), settings.head_bytes)
    return Timed(guarded, state.metrics)


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncGenerator[ServiceState]:
    """Everything the routes need; the store's lock and the engine's processes end with the block."""
    folder = locate(settings.base)
    shape, max_rank = base_shape(folder), settings.engine.max_lora_rank
    digest = await asyncio.to_thread(base_digest, folder)
    bounds = WeightBounds(settings.max_adapter_value, settings.max_adapter_change)
    extras = await asyncio.to_thread(extras_of, settings.extra, shape, max_rank, bounds)
    metrics = Metrics()
    admission = Admission(
        max_requests=settings.max_requests,
        max_tokens=settings.max_tokens,
        max_waiting=settings.max_waiting,
        max_wait_s=settings.max_wait_s,
    )
    metrics.watch(admission)
    metrics.restarts.set(int(os.environ.get(RESTARTS_VARIABLE, "0")))
    async with AsyncExitStack() as stack:
        store = stack.enter_context(Store(settings.store, digest))
        cache = stack.enter_context(_adapter_cache(settings.adapter_cache, settings.store))
        run_files = await asyncio.to_thread(Runs, settings.runs)
        fence: QueueFence | None = None
        if settings.redis_url is not None:  # before the engine loads: a queue of another store is told at once
            url = settings.redis_url.get_secret_value()
            queue = fence = await stack.enter_async_context(fenced_by_queue(url, store, run_files))
            metrics.watch_queue(lambda: queue.is_up)
        engine = await stack.enter_async_context(start_engine(folder, settings.engine, settings.media))
        for name in extras.keys() & store.branches.keys():
            raise UserError(f"--extra {name}: the store has a branch of that name; take another")
        registry = Registry(store, engine, Path(cache), dtype=engine.dtype, capacity=CACHED_ADAPTERS, extras=extras)
        check = partial(canary, engine)
        pixels = pixels_of(settings.media, engine.image_pixels)
        decoder = Decoder(pixels, keep_bytes=settings.pixels_bytes, decoders=settings.decoders)
        yield ServiceState(
            settings=settings,
            engine=engine,
            store=store,
            registry=registry,
            publisher=Publisher(store, registry, shape, max_rank=max_rank, canary=check, fence=fence, bounds=bounds),
            fence=fence,
            runs=run_files,
            scorer=Scorer(engine, metrics, settings.scores_bytes),
            decoder=decoder,
            media=MediaStore(settings.store / ".media", settings.media_bytes, decoder.pixels.limits),
            admission=admission,
            bodies=Bodies(settings.bodies_bytes),
            metrics=metrics,
        )
        await registry.close()  # while there is an engine to unload from


def extras_of(text: str, shape: BaseShape, max_rank: int, bounds: WeightBounds = BOUNDS) -> dict[str, Extra]:
    """`merged=DIR,other=DIR`: adapters as PEFT saves them, checked."""
    extras: dict[str, Extra] = {}
    for part in filter(None, text.split(",")):
        name, _, folder = part.partition("=")
        if not is_name(name) or name == BASE or name in extras:
            raise UserError(f"--extra {shown(part)}: {shown(name)} is no name for it; write NAME=DIR, each name once")
        try:
            check_adapter(Path(folder), shape, max_rank, bounds)
        except InvalidAdapterError as error:
            raise UserError(f"--extra {part}: {error}") from None
        extras[name] = Extra(Path(folder), folder_digest(Path(folder)))
    return extras


def _adapter_cache(folder: Path, store: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder that ends with the service; what a killed service of the same store has left there goes first."""
    prefix = f"coevo-{hashlib.sha256(bytes(store.resolve())).hexdigest()[:16]}-"
    for leftover in folder.glob(f"{prefix}*"):  # nobody's: this service holds the store's lock
        shutil.rmtree(leftover)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=folder)


async def canary(engine: Engine, handle: object) -> list[float]:
    """Log-probabilities of the canary sequence under an adapter that is to be published; every core has tried it."""
    assert handle is None or isinstance(handle, LoadedAdapter)
    try:
        scores, *_ = await gather_or_cancel(
            engine.score(
                CANARY_PROMPT, EngineMedia(), CANARY_COMPLETION, handle, cached=False, core=core, priority=URGENT
            )
            for core in range(engine.settings.data_parallel)
        )
    except NotFiniteError:
        return [math.nan]  # here it is the adapter's doing, and the publisher says so
    return scores.logprobs_C.tolist()


def pixels_of(numbers: MediaNumbers, bounds: tuple[int, int]) -> Pixels:
    """How media become pixels; `bounds` are those of the base's own processor."""

    def sizing(kind: str, low: int | None, high: int | None) -> Sizing:
        low, high = bounds[0] if low is None else low, bounds[1] if high is None else high
        if low > high:
            raise UserError(f"--{kind}-min-pixels {low} is above --{kind}-max-pixels {high}; lower the first")
        return Sizing(min_pixels=low, max_pixels=high)

    if numbers.min_frames > numbers.max_frames:
        raise UserError(f"--min-frames {numbers.min_frames} is above --max-frames {numbers.max_frames}; lower it")
    return Pixels(
        images=sizing("image", numbers.image_min_pixels, numbers.image_max_pixels),
        videos=sizing("video", numbers.video_min_pixels, numbers.video_max_pixels),
        sampling=Sampling(fps=numbers.fps, min_frames=numbers.min_frames, max_frames=numbers.max_frames),
    )
