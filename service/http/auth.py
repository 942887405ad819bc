"""Guards around the whole application, as plain ASGI: who may ask and by which name, how much and how slowly.

They stand outside the routes, so no route can forget them. Left out: TLS, users and roles, and slow headers: a proxy
in front does those.
"""

import asyncio
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Iterator, Mapping

from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import ProblemError, http_problem, response
from service.settings import Settings

OPEN_PATHS = frozenset({"/healthz"})  # asked by what starts and watches containers, which has no key

_GRACE_S = 30.0
_SLOWEST_BYTES_PER_S = 16 * 1024  # an adapter of 200 MiB may take three and a half hours, a drip of bytes may not


class ApiKey:
    """Asks for the key on every route but the open ones. Without a key set, everything is open."""

    def __init__(self, app: ASGIApp, key: SecretStr | None, open_paths: Iterable[str] = OPEN_PATHS) -> None:
        self._app = app
        self._digest = None if key is None else _digest(key.get_secret_value().encode())
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "lifespan"
            or self._digest is None
            or scope["path"] in self._open
            # Digests have one length, so the comparison tells nothing about the key's.
            or any(hmac.compare_digest(_digest(key), self._digest) for key in _keys(scope["headers"]))
        ):
            await self._app(scope, receive, send)
        else:
            await _refuse(http_problem(401, {"www-authenticate": "Bearer"}), scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _keys(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value
        scheme, _, key = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            yield key.strip()


class HostCheck:
    """Refuses a request for a name that is not this service's; without names, everything passes.

    A page in a browser may have its own name lead to 127.0.0.1, and would then be asked what only this machine may ask.
    The header still has the page's name.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._names or scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and _PORT.sub("", hosts[0]) in self._names:
            await self._app(scope, receive, send)
        else:
            await _refuse(http_problem(421), scope, receive, send)


def hosts_of(settings: Settings) -> frozenset[str]:
    """The names that are asked for."""
    if settings.allowed_hosts:
        return frozenset(name.strip().lower() for name in settings.allowed_hosts.split(","))
    is_open = settings.api_key is None and settings.host in _LOOPBACK
    return _LOOPBACK | {"[::1]"} if is_open else frozenset()


_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PORT = re.compile(r":[0-9]+\Z")


class HeadLimit:
    """Refuses a head that is too large (431). One that does not end is cut off by `protocol`."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            length = len(scope.get("raw_path") or b"") + len(scope["query_string"])
            length += sum(len(name) + len(value) for name, value in scope["headers"])
            if length > self._limit:
                await _refuse(http_problem(431), scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _refuse(problem: ProblemError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # policy violation; a socket has no status 401
    else:
        await response(problem, scope["path"])(scope, receive, send)


class BodyLimit:
    """Refuses a body that is too large (413) or too slow (408) while it arrives.

    `uploads` are larger limits for the PUT routes under a path. Too slow is less than 16 KiB/s on the average, after
    half a minute of grace; waiting for an answer is not limited here.
    """

    def __init__(self, app: ASGIApp, limit: int, uploads: Mapping[str, int], *, grace_s: float = _GRACE_S) -> None:
        self._app = app
        self._limit = limit
        self._uploads = dict(uploads)
        self._grace_s = grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit
        if scope["method"] == "PUT":
            limit = next((n for path, n in self._uploads.items() if scope["path"].startswith(path)), limit)
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if int(stated) > limit:  # the server has checked that it is a number
            await response(http_problem(413), scope["path"])(scope, receive, send)
            return
        await self._app(scope, _CountedBody(receive, limit, self._grace_s).receive, send)


class _CountedBody:
    """The body of one request. Its errors are HTTPExceptions, which every framework's handlers let through."""

    def __init__(self, receive: Receive, limit: int, grace_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._grace_s = grace_s
        self._began = time.monotonic()
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:  # from here on a route waits for the caller to hang up, however long that takes
            return await self._receive()
        left_s = self._grace_s + self._bytes / _SLOWEST_BYTES_PER_S - (time.monotonic() - self._began)
        try:
            async with asyncio.timeout(left_s):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408) from None
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._limit:
            raise HTTPException(413)
        return message
