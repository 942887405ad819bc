"""The service as one ASGI application: opens the store and the engine, then answers.

Outermost stand the clock, the key and the limits of bodies; then the routes of this package. vLLM's own application
is behind `routes.openai` alone, so none of its other routes can be reached.
"""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import base_digest, folder_digest
from adapters.names import BASE, is_name, shown
from adapters.store import DiskFullError, Store
from adapters.validate import BaseShape, InvalidAdapterError, base_shape, check_adapter
from service.engine.vllm import (
    Engine,
    EngineDiedError,
    EngineMedia,
    EngineSettings,
    LoadedAdapter,
    dtype_of,
    start_engine,
)
from service.faults import RESTARTS_VARIABLE
from service.http import problems
from service.http.admission import Admission
from service.http.auth import ApiKey, BodyLimit
from service.http.metrics import Metrics, Timed
from service.inputs import Decoder, Vocabulary
from service.media import Pixels, Sampling, Sizing
from service.mediastore import MediaStore
from service.publishing.fence import QueueFence, fenced_by_queue
from service.publishing.publisher import Publisher, PublishRefusedError
from service.publishing.registry import Extra, Registry, UnavailableError
from service.routes import adapters, health, media, openai, runs, scores
from service.runs import Runs
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from service.scoring import Scorer
from service.settings import MediaNumbers, Settings
from service.state import ServiceState

CACHED_ADAPTERS = 32  # that the engine keeps, in its slots and beside them


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncGenerator[ServiceState]:
    """Everything the routes need; the store's lock and the engine's processes end with the block."""
    folder = locate(settings.base)
    digest = await asyncio.to_thread(base_digest, folder)
    numbers, dtype = settings.engine, dtype_of(settings.engine.dtype)
    engine_settings = EngineSettings(
        base=folder,
        dtype=dtype,
        max_model_len=numbers.max_model_len,
        max_num_seqs=numbers.max_num_seqs,
        max_num_batched_tokens=numbers.max_num_batched_tokens,
        block_size=numbers.block_size,
        kv_cache_gib=numbers.kv_cache_gib,
        max_loras=numbers.max_loras,
        max_cpu_loras=CACHED_ADAPTERS,
        max_lora_rank=numbers.max_lora_rank,
        top_k=numbers.top_k,
        max_images=settings.media.max_images,
        max_videos=settings.media.max_videos,
    )
    shape = base_shape(folder)
    extras = await asyncio.to_thread(extras_of, settings.extra, shape, numbers.max_lora_rank)
    with (
        Store(settings.store, digest) as store,
        _adapter_cache(settings.adapter_cache, settings.store) as cache,
    ):
        runs = await asyncio.to_thread(Runs, settings.runs)
        async with _queue(settings, store, runs) as queue, start_engine(engine_settings) as engine:
            _check_names(extras, store)
            registry = Registry(store, engine, Path(cache), dtype=dtype, capacity=CACHED_ADAPTERS, extras=extras)
            yield _door(settings, engine, store, registry, shape, runs, queue)
            await registry.close()


def extras_of(text: str, shape: BaseShape, max_rank: int) -> dict[str, Extra]:
    """`merged=DIR,other=DIR`: adapters as PEFT saves them, checked."""
    found: dict[str, Extra] = {}
    for part in filter(None, text.split(",")):
        name, _, folder = part.partition("=")
        if not is_name(name) or name == BASE or name in found:
            raise UserError(f"--extra {shown(part)}: {shown(name)} is no name for it; write NAME=DIR, each name once")
        try:
            check_adapter(Path(folder), shape, max_rank)
        except InvalidAdapterError as error:
            raise UserError(f"--extra {part}: {error}") from None
        found[name] = Extra(Path(folder), folder_digest(Path(folder)))
    return found


def _check_names(extras: Mapping[str, Extra], store: Store) -> None:
    for name in extras.keys() & store.branches.keys():
        raise UserError(f"--extra {name}: the store has a branch of that name; take another")


def _queue(settings: Settings, store: Store, runs: Runs) -> AbstractAsyncContextManager[QueueFence | None]:
    """Before the engine loads: a queue of another store is told at once."""
    if settings.redis_url is None:
        return nullcontext()
    return fenced_by_queue(settings.redis_url.get_secret_value(), store, runs)


def _adapter_cache(folder: Path, store: Path) -> tempfile.TemporaryDirectory[str]:
    """Made while the store is locked: what a service of this store that was killed has left there is nobody's."""
    prefix = f"coevo-{hashlib.sha256(bytes(store.resolve())).hexdigest()[:16]}-"
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=folder)


def _door(
    settings: Settings,
    engine: Engine,
    store: Store,
    registry: Registry,
    shape: BaseShape,
    runs: Runs,
    queue: QueueFence | None,
) -> ServiceState:
    pixels = pixels_of(settings.media, engine.image_pixels)
    metrics = Metrics()
    admission = Admission(
        max_requests=settings.max_requests,
        max_tokens=settings.max_tokens,
        max_waiting=settings.max_waiting,
        max_wait_s=settings.max_wait_s,
    )
    metrics.watch(admission)
    if queue is not None:
        metrics.watch_queue(lambda: queue.is_up)
    metrics.restarts.set(int(os.environ.get(RESTARTS_VARIABLE, "0")))
    return ServiceState(
        settings=settings,
        engine=engine,
        store=store,
        registry=registry,
        publisher=Publisher(
            store,
            registry,
            shape,
            max_rank=settings.engine.max_lora_rank,
            canary=partial(canary, engine),
            fence=queue,
        ),
        runs=runs,
        scorer=Scorer(engine, metrics),
        pixels=pixels,
        decoder=Decoder(pixels),
        vocabulary=Vocabulary(
            size=engine.vocabulary_size, pads=engine.pads, chat=engine.chat_ids, encode=engine.text_ids
        ),
        media=MediaStore(settings.store / ".media", settings.media_bytes, pixels.limits),
        admission=admission,
        metrics=metrics,
        base_name=settings.base,
        base_digest=store.base,
    )


async def canary(engine: Engine, handle: object) -> list[float]:
    """Log-probabilities of the canary sequence under an adapter that is to be published."""
    assert handle is None or isinstance(handle, LoadedAdapter)
    scores = await engine.score(CANARY_PROMPT, EngineMedia(), CANARY_COMPLETION, handle, cached=False)
    return scores.logprobs_C.tolist()


def pixels_of(numbers: MediaNumbers, bounds: tuple[int, int]) -> Pixels:
    """How media become pixels; `bounds` are those of the base's own processor."""

    def sizing(kind: str, given: tuple[int | None, int | None]) -> Sizing:
        low, high = (bound if one is None else one for one, bound in zip(given, bounds, strict=True))
        if low > high:
            raise UserError(f"--{kind}-min-pixels {low} is above --{kind}-max-pixels {high}; lower the first")
        return Sizing(min_pixels=low, max_pixels=high)

    if numbers.min_frames > numbers.max_frames:
        raise UserError(f"--min-frames {numbers.min_frames} is above --max-frames {numbers.max_frames}; lower it")
    return Pixels(
        images=sizing("image", (numbers.image_min_pixels, numbers.image_max_pixels)),
        videos=sizing("video", (numbers.video_min_pixels, numbers.video_max_pixels)),
        sampling=Sampling(fps=numbers.fps, min_frames=numbers.min_frames, max_frames=numbers.max_frames),
    )


def build_app(door: ServiceState) -> ASGIApp:
    app = FastAPI(title="coevo", description="One frozen base, many adapters, exact log-probabilities.")
    app.state.door = door
    problems.install(app)
    app.add_exception_handler(UnavailableError, _on_unavailable)
    app.add_exception_handler(PublishRefusedError, _on_refused)
    app.add_exception_handler(EngineDiedError, _on_engine_died)
    app.add_exception_handler(TimeoutError, _on_timeout)
    app.add_exception_handler(ExceptionGroup, _on_group)
    app.add_exception_handler(DiskFullError, _on_disk_full)
    for module in (scores, adapters, runs, media, openai, health):
        app.include_router(module.router)
    guarded: Any = BodyLimit(app, door.settings.body_bytes, {"/adapters/": door.settings.upload_bytes})
    return Timed(ApiKey(guarded, door.settings.api_key), door.metrics)


async def _on_unavailable(_: Request, error: Exception) -> Response:
    assert isinstance(error, UnavailableError)
    status = 404 if error.kind == "unknown-adapter" else 410
    return problems.response(problems.ProblemError(error.kind, status, str(error)))


async def _on_disk_full(_: Request, error: Exception) -> Response:
    return problems.response(problems.ProblemError("disk-full", 507, str(error)))


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, PublishRefusedError)
    status = {"invalid": 422, "other-base": 422, "canary": 422, "too-large": 413}.get(error.kind, 409)
    members: dict[str, Any] = dict(error.members)
    return problems.response(problems.ProblemError(error.kind, status, str(error), **members))


async def _on_engine_died(_: Request, error: Exception) -> Response:
    return problems.response(problems.ProblemError("not-ready", 503, "the engine died", retry_after_s=5))


async def _on_timeout(_: Request, error: Exception) -> Response:
    return problems.response(problems.ProblemError("busy", 503, "the engine took too long", retry_after_s=5))


async def _on_group(request: Request, error: Exception) -> Response:
    """Of tasks that were started together: the first that failed speaks for all."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    handlers = request.app.exception_handlers
    handler = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
    if handler is None or handler is handlers[Exception]:  # the log holds what nobody has foreseen
        raise error
    return await handler(request, error)
