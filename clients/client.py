"""The one client of the service, for an event loop.

Every call has one deadline, which holds for its tries, its pauses and the uploads on its way. It begins when the call
gets its place: of hundreds that are made at once most wait for others first. Nothing is done twice by being asked
twice: revisions and media go by their content. Arrays travel as safetensors. A client that was given a base's digest
asks nothing of a service with another base, and looks again whenever a request got no response.

A call ends with its result or one `ServiceError`; where the caller can mend it, that is a `UserError` too.

Left out: what a run tells while it goes on (`follow`), and proxies from the environment: the key goes to the address
that was given, nowhere else.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import httpx

from adapters.manifest import ADAPTER_FILES, CONFIG, OPTIMISER, WEIGHTS, Manifest, files_digest
from clients import calls
from clients.address import KEY_VARIABLE, ServiceAddress, from_environment
from clients.calls import BINARY, JSON, Call, DownloadTarget, media_id, path_of, read_arrays, read_json
from clients.retries import RefusedError, RetryDeadline, ServiceError, error_of
from service.concurrency import gather_or_cancel
from service.schemas import (
    SAFETENSORS,
    AdaptersResponse,
    GenerateRequest,
    GenerateResponse,
    LogprobsRequest,
    LogprobsResponse,
    RolloutsIndex,
    RolloutsKept,
    RunInfo,
    RunsResponse,
    StepRollouts,
)
from service.wire import ScoredArrays, decode_generated

__all__ = ["AsyncClient", "RefusedError", "ServiceAddress", "ServiceError", "from_environment", "media_id"]

T = TypeVar("T")

_UPLOAD_ROUNDS = 3
"""How often a call uploads media that the service does not know. More than once, as it may forget them meanwhile; not
for ever, as a media store that is too small for one request forgets them every time."""
_CONNECT_S = 10.0
"""The longest wait for a connection. A host that answers nothing at all would use up a call's whole time in one try."""
_UPLOAD_BYTES_PER_S = 2**20
"""What a call's time grows by with the bytes that it sends: a slow line of 8 Mbit/s."""
_POOL = 8
"""Connections of one pool: it looks at all of them, and asks the kernel of the idle ones, whenever a request begins or
ends."""


class AsyncClient:
    """At most `max_in_flight` calls that the engine works for are on their way, each for `engine_s` at most. `media`
    holds the bytes of a request's ids."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        base: str | None = None,
        timeout_s: float = 600.0,
        engine_s: float | None = None,
        max_in_flight: int = 64,
    ) -> None:
        self.url = url
        self.answered = 0
        """Requests so far that had their answer, whichever it was."""
        self._base = base
        self._is_base_checked = False
        self._timeout_s = timeout_s
        self._engine_s = timeout_s if engine_s is None else engine_s
        # Last in, first out: the pool that was used last is used next, so that the others stay idle.
        self._slots: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        # Places of their own for all else: a publish must not wait for the hours that hundreds of samples take.
        self._quick_slots: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        self._pools: list[httpx.AsyncClient] = []
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            # httpx's own error would show the key.
            detail = f"{KEY_VARIABLE}: take visible ASCII characters, it travels in a header"
            raise RefusedError("invalid", None, detail)
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        context = httpx.create_ssl_context(trust_env=False)  # one for all pools: each would read the certificates
        sizes = [min(_POOL, max_in_flight - first) for first in range(0, max_in_flight, _POOL)]
        for slots, size in [(self._quick_slots, _POOL), *((self._slots, size) for size in sizes)]:
            limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
            pool = httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, limits=limits, verify=context)
            self._pools.append(pool)
            for _ in range(size):
                slots.put_nowait(pool)

    @property
    def longest_s(self) -> tuple[float, float]:
        """The longest time that a call takes: one that the engine works for, and any other."""
        return self._engine_s, self._timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
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
        call = calls.score(adapters, request, media, calls.read_logprobs)
        return await self._run(call, timeout_s)

    async def scores(
        self, adapters: Sequence[str], request: LogprobsRequest, *, media: Mapping[str, bytes] = MappingProxyType({})
    ) -> list[list[ScoredArrays]]:
        """The same as arrays, [adapter][sequence]."""
        call = calls.score(adapters, request, media, calls.read_scores)
        del request  # lists of numbers, many times as large as the call: they would stay until the answer comes
        return await self._run(call)

    async def generate(
        self,
        adapter: str,
        request: GenerateRequest,
        *,
        media: Mapping[str, bytes] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> list[GenerateResponse]:
        """One response for each prompt, in order; requests go together, and when one fails, the rest is cancelled."""
        size = calls.prompts_together(request.n, request.max_tokens)
        parts = [request.prompts[start : start + size] for start in range(0, len(request.prompts), size)]
        requests = [
            Call(
                "POST",
                "/generate",
                lambda response: read_arrays(response, decode_generated, GenerateResponse),
                params=[("adapter", adapter)],
                headers=JSON | BINARY,
                content=request.model_copy(update={"prompts": part}).model_dump_json(exclude_none=True).encode(),
                media=media,
                is_long=True,
            )
            for part in parts
        ]
        responses = await gather_or_cancel(self._run(call, timeout_s) for call in requests)
        return [
            response.model_copy(update={"prompts": [prompt]}) for response in responses for prompt in response.prompts
        ]

    async def adapters(self) -> AdaptersResponse:
        return await self._run(calls.ADAPTERS)

    async def describe(self, branch: str, revision: int) -> Manifest:
        return await self._run(calls.describe(branch, revision))

    async def publish(
        self,
        branch: str,
        revision: int,
        folder: Path,
        *,
        parent: int | None = None,
        token: int | None = None,
        job: str | None = None,
        base: str | None = None,
        meta: Mapping[str, Any] = MappingProxyType({}),
        timeout_s: float | None = None,
    ) -> Manifest:
        """The files of `folder`: the adapter's, and the optimiser's if it is there. Repeating it is no error.

        Without a `parent` it continues the head, whichever that is.
        """
        files = {name: folder / name for name in (WEIGHTS, CONFIG, OPTIMISER) if (folder / name).exists()}
        missing = [name for name in ADAPTER_FILES if name not in files]
        if missing:
            raise error_of("invalid", None, f"{folder}: no {' and no '.join(missing)} here; name an adapter's folder")
        digest = await asyncio.to_thread(files_digest, files)

        def read(response: httpx.Response) -> Manifest:
            manifest = read_json(response, Manifest)
            if manifest.digest != digest:
                raise calls.bad_response(response, f"it stored {manifest.digest}, sent was {digest}")
            return manifest

        fields = {
            "parent": parent,
            "token": token,
            "job": job,
            "base": base,
            "meta": json.dumps(dict(meta), allow_nan=False),
        }
        given = {name: str(value) for name, value in fields.items() if value is not None}
        call = Call("PUT", path_of("adapters", branch, revision), read, fields=given, files=files)
        return await self._run(call, timeout_s)

    async def fork(self, branch: str, origin: str, *, moments: bool = False) -> Manifest:
        """`origin` is `branch@revision`; its optimiser's moments go along if said so."""
        content = json.dumps({"from": origin} | ({"moments": True} if moments else {})).encode()
        path = path_of("adapters", branch)
        return await self._run(Call("POST", path, calls.read_manifest, headers=JSON, content=content))

    async def go_back(self, branch: str, to: int, *, head: int) -> Manifest:
        """A new head with the files of the revision `to`, where `head` is the head now."""
        content = json.dumps({"to": to, "head": head}).encode()
        path = path_of("adapters", branch, "head")
        return await self._run(Call("POST", path, calls.read_manifest, headers=JSON, content=content))

    async def retire(self, branch: str, revision: int) -> None:
        await self._run(Call("DELETE", path_of("adapters", branch, revision), calls.read_nothing))

    async def download(self, branch: str, revision: int, file: str, to: Path) -> Path:
        """Into the file `to`, which appears when it is whole and has the manifest's hash."""
        manifest = await self.describe(branch, revision)
        if file not in manifest.files:
            names = ", ".join(manifest.files) or "none"
            raise error_of("not-found", None, f"{branch}@{revision} has no {file}; its files are {names}")
        target = DownloadTarget(to, manifest.files[file].sha256)
        path = path_of("adapters", branch, revision, file)
        await self._run(Call("GET", path, calls.read_nothing, target=target))
        return to

    async def put_rollouts(
        self, run: str, branch: str, step: int, record: Path, *, keep: int | None = None
    ) -> list[int]:
        """A step's record; again replaces it. With `keep`, so many steps of the branch stay: those that went."""
        call = Call(
            "PUT",
            path_of("runs", run, "rollouts", branch, step),
            lambda response: read_json(response, RolloutsKept).removed,
            params=[] if keep is None else [("keep", str(keep))],
            headers={"content-type": SAFETENSORS},
            body=record,
        )
        return await self._run(call, self._timeout_s + record.stat().st_size / _UPLOAD_BYTES_PER_S)

    async def rollouts(
        self, run: str, branch: str, step: int, *, part: str | None = None, first: int = 0, count: int = 16
    ) -> StepRollouts:
        """A page: some prompts of a part, or of each, from the number `first` on."""
        path = path_of("runs", run, "rollouts", branch, step)
        params = [("first", str(first)), ("count", str(count)), *([] if part is None else [("part", part)])]
        return await self._run(Call("GET", path, lambda response: read_json(response, StepRollouts), params=params))

    async def recorded_steps(self, run: str) -> dict[str, list[int]]:
        """The steps of each branch whose rollouts are kept."""
        path = path_of("runs", run, "rollouts")
        return await self._run(Call("GET", path, lambda response: read_json(response, RolloutsIndex).branches))

    async def runs(self) -> list[RunInfo]:
        """The one that was heard of last comes first."""
        return await self._run(Call("GET", "/runs", lambda response: read_json(response, RunsResponse).runs))

    async def ready(self) -> bool:
        """Whether the service is ready now: one try, without waiting."""
        try:
            await self._send(calls.READY, _CONNECT_S, self._pools[0])
        except httpx.TransportError:
            return False
        except ServiceError as error:
            if error.status != 503:
                raise  # a wrong key does not pass
            return False
        return True

    async def wait_until_ready(self, timeout_s: float) -> None:
        await self._run(calls.READY, timeout_s)

    async def _run(self, call: Call[T], timeout_s: float | None = None) -> T:
        """The call's result, with the uploads that it turns out to need."""
        async with self._slot(call) as http:
            usual_s = self._engine_s if call.is_long else self._timeout_s
            deadline = RetryDeadline(self.url, usual_s if timeout_s is None else timeout_s)
            for _ in range(_UPLOAD_ROUNDS):
                try:
                    return await self._repeat(call, deadline, http)
                except ServiceError as error:
                    uploads = calls.unknown_media(error, call.media)
                for upload in uploads:
                    await self._repeat(upload, deadline, http)
            return await self._repeat(call, deadline, http)

    async def _repeat(self, call: Call[T], deadline: RetryDeadline, http: httpx.AsyncClient) -> T:
        while True:
            try:
                # httpx's own limits are for each read: a server that sends a byte now and then passes them for ever.
                async with asyncio.timeout(deadline.left_s()):
                    if self._base is not None and not self._is_base_checked and not call.any_base:
                        base = (await self._send(calls.ADAPTERS, deadline.left_s(), http)).base
                        if base.digest != self._base:
                            detail = f"{self.url}: serves the base {base.name} ({base.digest}), wanted is {self._base}"
                            remedy = "start one for this base, or mend COEVO_SERVICE_URL"
                            raise RefusedError("other-base", None, f"{detail}; {remedy}")
                        self._is_base_checked = True
                    return await self._send(call, deadline.left_s(), http)
            except (TimeoutError, httpx.RequestError, ServiceError) as error:
                # Without a response: the service may have been started again, with another base.
                self._is_base_checked = self._is_base_checked and isinstance(error, ServiceError)
                pause_s = deadline.pause_after(error)
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def _slot(self, call: Call[Any]) -> AsyncGenerator[httpx.AsyncClient]:
        """A place among those that are under way, and the pool for it. It is kept through pauses."""
        slots = self._slots if call.is_long else self._quick_slots
        pool = await slots.get()
        try:
            yield pool
        finally:
            slots.put_nowait(pool)

    async def _send(self, call: Call[T], left_s: float, http: httpx.AsyncClient) -> T:
        timeout = httpx.Timeout(left_s, connect=min(left_s, _CONNECT_S))
        with call.arguments() as arguments:
            async with http.stream(**arguments, timeout=timeout) as response:
                if call.target is None or not response.is_success:
                    await response.aread()
                else:
                    with call.target.open(response) as write:
                        async for piece in response.aiter_bytes():
                            write(piece)
                self.answered += 1
                calls.check_response(response)
                if call.is_long:  # its numbers are many: others are answered meanwhile
                    return await asyncio.to_thread(call.read, response)
                return call.read(response)
