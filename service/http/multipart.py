"""multipart/form-data as a stream of parts, so that an adapter goes to its folder without a stop in memory or /tmp."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.http.problems import ProblemError

MAX_HEADER_BYTES = 4096  # of a name or a value, which stay in memory


@dataclass(frozen=True, slots=True)
class FormPart:
    """A field; read `chunks` to their end before the next part is asked for."""

    name: str
    chunks: AsyncGenerator[bytes]


async def read_parts(content_type: str, body: AsyncIterator[bytes]) -> AsyncGenerator[FormPart]:
    """The parts of a body in their order."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise _unreadable()
    stream = _Stream(boundary, body)
    while (name := await stream.next_name()) is not None:
        chunks = stream.chunks()
        yield FormPart(name, chunks)
        async for _ in chunks:  # what the reader left
            pass


async def read_text(part: FormPart, limit: int) -> str:
    data = bytearray()
    async for chunk in part.chunks:
        data += chunk
        if len(data) > limit:
            raise ProblemError("too-large", 413, f"{part.name}: more than the {limit} bytes that are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProblemError("invalid", 422, f"{part.name}: not UTF-8") from None


class _Stream:
    """The parser calls back with slices of what it is fed; here they become events that can be waited for."""

    def __init__(self, boundary: bytes, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._events: deque[tuple[str, bytes]] = deque()
        name, value, headers = bytearray(), bytearray(), dict[bytes, bytes]()

        def collect(target: bytearray, data: bytes, start: int, end: int) -> None:
            target += data[start:end]  # a header may come in several slices
            if len(name) + len(value) > MAX_HEADER_BYTES:
                raise _unreadable()

        def end_header() -> None:
            headers[bytes(name).lower()] = bytes(value)
            name.clear()
            value.clear()

        def begin_part() -> None:
            _, options = parse_options_header(headers.pop(b"content-disposition", b""))
            headers.clear()
            self._events.append(("begin", options.get(b"name", b"")))

        def add_data(data: bytes, start: int, end: int) -> None:
            self._events.append(("data", data[start:end]))

        callbacks: Any = {
            "on_header_field": partial(collect, name),
            "on_header_value": partial(collect, value),
            "on_header_end": end_header,
            "on_headers_finished": begin_part,
            "on_part_data": add_data,
            "on_part_end": lambda: self._events.append(("end", b"")),
        }
        self._parser = MultipartParser(boundary, callbacks)

    async def next_name(self) -> str | None:
        event = await self._next()
        while event is not None and event[0] != "begin":
            event = await self._next()
        return None if event is None else event[1].decode("utf-8", "replace")

    async def chunks(self) -> AsyncGenerator[bytes]:
        while (event := await self._next()) is not None and event[0] == "data":
            yield event[1]

    async def _next(self) -> tuple[str, bytes] | None:
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                return None
            try:
                self._parser.write(chunk)
            except MultipartParseError:
                raise _unreadable() from None
        return self._events.popleft()


def _unreadable() -> ProblemError:
    return ProblemError("bad-request", 400, "the body is not multipart/form-data; send fields and files that way")
