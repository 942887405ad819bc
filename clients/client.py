"""The one client of the service, for threads (`Client`) and for an event loop (`AsyncClient`).

Every call has one deadline, which holds for its tries, its pauses and the uploads on its way. Nothing is done twice
by being asked twice: revisions and media go by their content. Arrays travel as safetensors. A client that was given a
base's digest asks nothing of a service with another base, and looks again whenever a request got no answer.

A call ends with its result or one `ServiceError`; where whoever asked can mend it, that is a `UserError` too.

Left out: what a run tells while it goes on, proxies from the environment (the key goes to the address given, nowhere
else), and in `Client` the exact deadline when a server stops in the middle of an answer: that may take as long again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import httpx

from adapters.manifest import Manifest
from clients import calls
from clients.calls import Call, media_id
from clients.retries import RefusedError, RetryDeadline, ServiceError
from service.concurrency import gather_or_cancel
from service.schemas import (
    AdaptersResponse,
    GenerateRequest,
    GenerateResponse,
    LogprobsRequest,
    LogprobsResponse,
    RunInfo,
    StepRollouts,
)

__all__ = ["AsyncClient", "Client", "RefusedError", "ServiceError", "from_environment", "media_id"]

URL_VARIABLE = "COEVO_SERVICE_URL"
KEY_VARIABLE = "COEVO_API_KEY"

T = TypeVar("T")

_UPLOAD_ROUNDS = 3
"""A service whose media store is too small for one request would forget for ever."""
_CONNECT_S = 10.0
_POOL = 8
"""Connections of one pool: it looks at all of them, and asks the kernel of the idle ones, whenever a request begins or
ends."""


def from_environment(environ: Mapping[str, str]) -> dict[str, str | None]:
    """`url` and `api_key` for a client."""
    return {"url": environ.get(URL_VARIABLE) or "http://127.0.0.1:8000", "api_key": environ.get(KEY_VARIABLE) or None}


class Client:
    """For one thread at a time or many. `media` holds the bytes of the ids that a request names."""

    def __init__(
        self, url: str, *, api_key: str | None = None, base: str | None = None, timeout_s: float = 600.0
    ) -> None:
        self.url = url
        self._base = base
        self._base_seen = False
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=url, headers=_key(api_key), trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def logprobs(
        self,
        adapters: Sequence[str],
        request: LogprobsRequest,
        *,
        media: Mapping[str, bytes] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> LogprobsResponse:
        return self._run(calls.logprobs(adapters, request, media), timeout_s)

    def generate(
        self,
        adapter: str,
        request: GenerateRequest,
        *,
        media: Mapping[str, bytes] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> list[GenerateResponse]:
        """One answer for each prompt; requests go one after the other, and the deadline is that of them all."""
        patience = self._patience(timeout_s)
        answers = [self._finish(call, patience) for call in calls.generate(adapter, request, media)]
        return [one for answer in answers for one in calls.by_prompt(answer)]

    def adapters(self) -> AdaptersResponse:
        return self._run(calls.adapters())

    def describe(self, branch: str, revision: int) -> Manifest:
        return self._run(calls.describe(branch, revision))

    def publish(
        self,
        branch: str,
        revision: int,
        folder: Path,
        *,
        parent: int,
        token: int | None = None,
        job: str | None = None,
        base: str | None = None,
        meta: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> Manifest:
        """The files of `folder`; again with the same files is no error."""
        call = calls.publish(branch, revision, folder, parent=parent, token=token, job=job, base=base, meta=meta)
        return self._run(call, timeout_s)

    def fork(self, branch: str, origin: str) -> Manifest:
        """`origin` is `branch@revision`."""
        return self._run(calls.fork(branch, origin))

    def retire(self, branch: str, revision: int) -> None:
        self._run(calls.retire(branch, revision))

    def download(self, branch: str, revision: int, file: str, to: Path) -> Path:
        """Into the file `to`, which appears when it is whole."""
        patience = self._patience(None)
        manifest = self._finish(calls.describe(branch, revision), patience)
        return self._finish(calls.download(branch, revision, file, to, manifest), patience)

    def put_media(self, data: bytes) -> str:
        return self._run(calls.put_media(data))

    def put_rollouts(self, run: str, branch: str, step: int, rollouts: StepRollouts) -> None:
        """Again for the same step replaces them."""
        self._run(calls.put_rollouts(run, branch, step, rollouts))

    def rollouts(self, run: str, branch: str, step: int) -> StepRollouts:
        return self._run(calls.rollouts(run, branch, step))

    def runs(self) -> list[RunInfo]:
        """The one that was heard of last comes first."""
        return self._run(calls.runs())

    def run(self, id: str) -> RunInfo:
        return self._run(calls.run(id))

    def ready(self) -> bool:
        """Asked once, without patience."""
        try:
            self._send(calls.ready(), _CONNECT_S)
        except httpx.TransportError:
            return False
        except ServiceError as error:
            if error.status != 503:
                raise  # a wrong key does not pass
            return False
        return True

    def wait_until_ready(self, timeout_s: float) -> None:
        self._run(calls.ready(), timeout_s)

    def _patience(self, timeout_s: float | None) -> RetryDeadline:
        return RetryDeadline(self.url, self._timeout_s if timeout_s is None else timeout_s)

    def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        return self._finish(call, self._patience(timeout_s))

    def _finish(self, call: Call[T], patience: RetryDeadline) -> T:
        """With the uploads that it turns out to need."""
        for _ in range(_UPLOAD_ROUNDS):
            try:
                return self._repeat(call, patience)
            except ServiceError as error:
                uploads = calls.unknown_media(error, call.media)
            for upload in uploads:
                self._repeat(upload, patience)
        return self._repeat(call, patience)

    def _repeat(self, call: Call[T], patience: RetryDeadline) -> T:
        while True:
            try:
                return self._try(call, patience)
            except (httpx.RequestError, ServiceError) as error:
                self._base_seen = self._base_seen and isinstance(error, ServiceError)
                pause_s = patience.pause_after(error)
            time.sleep(pause_s)

    def _try(self, call: Call[T], patience: RetryDeadline) -> T:
        if self._base is not None and not self._base_seen and not call.any_base:
            calls.check_base(self._send(calls.adapters(), patience.left_s()), self._base, self.url)
            self._base_seen = True
        return self._send(call, patience.left_s())

    def _send(self, call: Call[T], left_s: float) -> T:
        with call.arguments() as arguments, self._http.stream(**arguments, timeout=_timeout(left_s)) as answer:
            if call.to is None or not answer.is_success:
                answer.read()
            else:
                with call.to.open(answer) as write:
                    for piece in answer.iter_bytes():
                        write(piece)
            calls.check(answer)
            return call.read(answer)


class AsyncClient:
    """For one event loop, with at most `max_in_flight` requests on their way."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        base: str | None = None,
        timeout_s: float = 600.0,
        max_in_flight: int = 64,
    ) -> None:
        self.url = url
        self._base = base
        self._base_seen = False
        self._timeout_s = timeout_s
        self._room: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        self._pools: list[httpx.AsyncClient] = []
        context = httpx.create_ssl_context(trust_env=False)
        for first in range(0, max_in_flight, _POOL):
            size = min(_POOL, max_in_flight - first)
            limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
            pool = httpx.AsyncClient(
                base_url=url, headers=_key(api_key), trust_env=False, limits=limits, verify=context
            )
            self._pools.append(pool)
            for _ in range(size):
                self._room.put_nowait(pool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def logprobs(
        self,
        adapters: Sequence[str],
        request: LogprobsRequest,
        *,
        media: Mapping[str, bytes] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> LogprobsResponse:
        return await self._run(calls.logprobs(adapters, request, media), timeout_s)

    async def generate(
        self,
        adapter: str,
        request: GenerateRequest,
        *,
        media: Mapping[str, bytes] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> list[GenerateResponse]:
        """One answer for each prompt; requests go together, and when one fails, the others are called off."""
        patience = [(call, self._patience(timeout_s)) for call in calls.generate(adapter, request, media)]
        answers = await gather_or_cancel(self._finish(call, one) for call, one in patience)
        return [one for answer in answers for one in calls.by_prompt(answer)]

    async def adapters(self) -> AdaptersResponse:
        return await self._run(calls.adapters())

    async def describe(self, branch: str, revision: int) -> Manifest:
        return await self._run(calls.describe(branch, revision))

    async def publish(
        self,
        branch: str,
        revision: int,
        folder: Path,
        *,
        parent: int,
        token: int | None = None,
        job: str | None = None,
        base: str | None = None,
        meta: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> Manifest:
        """The files of `folder`; again with the same files is no error."""
        call = await asyncio.to_thread(  # it reads the files for their hash
            calls.publish, branch, revision, folder, parent=parent, token=token, job=job, base=base, meta=meta
        )
        return await self._run(call, timeout_s)

    async def fork(self, branch: str, origin: str) -> Manifest:
        """`origin` is `branch@revision`."""
        return await self._run(calls.fork(branch, origin))

    async def retire(self, branch: str, revision: int) -> None:
        await self._run(calls.retire(branch, revision))

    async def download(self, branch: str, revision: int, file: str, to: Path) -> Path:
        """Into the file `to`, which appears when it is whole."""
        patience = self._patience(None)
        manifest = await self._finish(calls.describe(branch, revision), patience)
        return await self._finish(calls.download(branch, revision, file, to, manifest), patience)

    async def put_media(self, data: bytes) -> str:
        return await self._run(calls.put_media(data))

    async def put_rollouts(self, run: str, branch: str, step: int, rollouts: StepRollouts) -> None:
        """Again for the same step replaces them."""
        await self._run(await asyncio.to_thread(calls.put_rollouts, run, branch, step, rollouts))

    async def rollouts(self, run: str, branch: str, step: int) -> StepRollouts:
        return await self._run(calls.rollouts(run, branch, step))

    async def runs(self) -> list[RunInfo]:
        """The one that was heard of last comes first."""
        return await self._run(calls.runs())

    async def run(self, id: str) -> RunInfo:
        return await self._run(calls.run(id))

    async def ready(self) -> bool:
        """Asked once, without patience."""
        try:
            await self._send(calls.ready(), _CONNECT_S, self._pools[0])
        except httpx.TransportError:
            return False
        except ServiceError as error:
            if error.status != 503:
                raise  # a wrong key does not pass
            return False
        return True

    async def wait_until_ready(self, timeout_s: float) -> None:
        await self._run(calls.ready(), timeout_s)

    def _patience(self, timeout_s: float | None) -> RetryDeadline:
        return RetryDeadline(self.url, self._timeout_s if timeout_s is None else timeout_s)

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        return await self._finish(call, self._patience(timeout_s))

    async def _finish(self, call: Call[T], patience: RetryDeadline) -> T:
        """With the uploads that it turns out to need."""
        for _ in range(_UPLOAD_ROUNDS):
            try:
                return await self._repeat(call, patience)
            except ServiceError as error:
                uploads = calls.unknown_media(error, call.media)
            for upload in uploads:
                await self._repeat(upload, patience)
        return await self._repeat(call, patience)

    async def _repeat(self, call: Call[T], patience: RetryDeadline) -> T:
        while True:
            try:
                return await self._in_time(call, patience)
            except (httpx.RequestError, ServiceError) as error:
                self._base_seen = self._base_seen and isinstance(error, ServiceError)
                pause_s = patience.pause_after(error)
            await asyncio.sleep(pause_s)

    async def _in_time(self, call: Call[T], patience: RetryDeadline) -> T:
        try:
            async with asyncio.timeout(patience.left_s()), self._place() as http:
                return await self._try(call, patience, http)
        except TimeoutError:
            raise httpx.ReadTimeout("the call's deadline") from None

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[httpx.AsyncClient]:
        """One of `max_in_flight`; the one given back last is taken first, so that the others stay idle."""
        http = await self._room.get()
        try:
            yield http
        finally:
            self._room.put_nowait(http)

    async def _try(self, call: Call[T], patience: RetryDeadline, http: httpx.AsyncClient) -> T:
        if self._base is not None and not self._base_seen and not call.any_base:
            calls.check_base(await self._send(calls.adapters(), patience.left_s(), http), self._base, self.url)
            self._base_seen = True
        return await self._send(call, patience.left_s(), http)

    async def _send(self, call: Call[T], left_s: float, http: httpx.AsyncClient) -> T:
        with call.arguments() as arguments:
            async with http.stream(**arguments, timeout=_timeout(left_s)) as answer:
                if call.to is None or not answer.is_success:
                    await answer.aread()
                else:
                    with call.to.open(answer) as write:
                        async for piece in answer.aiter_bytes():
                            write(piece)
                calls.check(answer)
                return call.read(answer)


def _key(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise RefusedError("invalid", None, f"{KEY_VARIABLE}: take visible ASCII characters, it travels in a header")
    return {"authorization": f"Bearer {api_key}"}


def _timeout(left_s: float) -> httpx.Timeout:
    return httpx.Timeout(left_s, connect=min(left_s, _CONNECT_S))
