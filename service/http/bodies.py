"""JSON bodies of requests: how many bytes of them are in memory, and how they become models without a long stop.

A parser of JSON holds the interpreter for as long as it parses, in a thread too: for 150 MB that is seconds in which
nothing else is answered. So the long lists of a body (`sequences`, `prompts`, `messages`) are cut into their items
first, and each item is parsed and checked on its own. Between two items others have their turn.

Left out: bodies that are streamed to a file as they come (`PUT` of adapters, media, records).
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast, get_args, get_origin

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from service.http.problems import ProblemError

_SMALL = 2**16  # bytes: parsed at once, in less time than a thread takes to begin
_WINDOW = 2**20  # bytes that are searched without a turn for others
ITEM_BYTES = 16 * 2**20
"""The most of one item outside of its strings; 16,000 tokens with 20 fixed ids each have 2.5 MB. It is 0.2 s."""
_DEPTH = 64
_MOST_ERRORS = 20
_PARSED_AT_ONCE = 2

_SPACE = re.compile(rb"[ \t\r\n]{0,1048576}")
_MARK = re.compile(rb'["\[\]{}]')
_SCALAR = re.compile(rb"[^,\]}\s]{1,65536}")


class Bodies:
    """`limit_bytes` bounds all bodies that are in memory together; one more is answered 429."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parsing = asyncio.Semaphore(_PARSED_AT_ONCE)
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[bytes]:
        """The whole body, counted from its first byte to the end of the block."""
        body = bytearray()
        try:
            async for chunk in request.stream():
                self.held_bytes += len(chunk)
                body += chunk
                if self.held_bytes > self._limit_bytes:
                    raise ProblemError("busy", 429, "the bodies of other requests fill the memory", retry_after_s=1)
            yield bytes(body)
        finally:
            self.held_bytes -= len(body)

    async def parse(self, body: bytes, model: type[BaseModel]) -> BaseModel:
        if len(body) <= _SMALL:
            return parse(body, model)
        async with self._parsing:
            return await asyncio.to_thread(parse, body, model)


class JsonRoute(APIRoute):
    """A route whose body is read and parsed here; FastAPI is given the model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = cast(type[BaseModel], self.body_field.field_info.annotation)

        async def parsed(request: Request) -> Response:
            bodies: Bodies = request.app.state.service.bodies
            async with bodies.read(request) as body:
                value = await bodies.parse(body, model)
            return await handle(_ParsedRequest(request, value))

        return parsed


class _ParsedRequest(Request):
    """To FastAPI a body that is read already."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"{}"  # anything but nothing

    async def json(self) -> BaseModel:
        return self._value


def parse(body: bytes, model: type[BaseModel]) -> BaseModel:
    """The model of a body, an item at a time. RequestValidationError as FastAPI has it, or a ProblemError of 400."""
    cursor = _Cursor(body)
    values: dict[str, Any] = {}
    errors: list[Any] = []
    for key in cursor.members():
        items = _items_of(model, key)
        if items is None or not cursor.is_at(b"["):
            values[key] = cursor.value(key)
            continue
        values[key] = parsed = list[BaseModel]()
        for number, item in enumerate(cursor.items(key)):
            try:
                parsed.append(items.model_validate_json(item))
            except ValidationError as error:
                errors += _errors(error, key, number)
            if len(errors) > _MOST_ERRORS:
                raise RequestValidationError(errors)
    try:
        whole = model.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError([*_errors(error), *errors]) from None
    if errors:
        raise RequestValidationError(errors)
    return whole


def _items_of(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of a list's items, where the field is a list of models."""
    field = model.model_fields.get(key)
    if field is None or get_origin(field.annotation) is not list:
        return None
    (item,) = get_args(field.annotation)
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def _errors(error: ValidationError, *where: str | int) -> list[Any]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**item, "loc": ("body", *where, *item["loc"])} for item in details[: _MOST_ERRORS + 1]]


class _Cursor:
    """A place in a text of JSON. It tells where values end; whether they are well-formed is the parser's to say."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def members(self) -> Iterator[str]:
        """The keys of the object that is all of the body; the caller reads each one's value before the next."""
        self._expect(b"{")
        while not self._closed_by(b"}"):
            start = self._at
            if not self.is_at(b'"'):
                raise _unreadable()
            self._skip_string()
            key = from_json(self._body[start : self._at])
            self._expect(b":")
            self._skip_space()
            yield key
            if not self._separated(b"}"):
                break
        self._skip_space()
        if self._at != len(self._body):
            raise _unreadable()

    def items(self, key: str) -> Iterator[bytes]:
        self._expect(b"[")
        number = 0
        while not self._closed_by(b"]"):
            yield self._raw(f"{key}.{number}")
            number += 1
            if not self._separated(b"]"):
                break

    def value(self, key: str) -> Any:
        try:
            return from_json(self._raw(key), allow_inf_nan=True)
        except ValueError:
            raise _unreadable() from None

    def is_at(self, mark: bytes) -> bool:
        return self._body.startswith(mark, self._at)

    def _raw(self, where: str) -> bytes:
        start = self._at
        if self.is_at(b"{") or self.is_at(b"["):
            self._skip_brackets(where)
        elif self.is_at(b'"'):
            self._skip_string()
        else:
            scalar = _SCALAR.match(self._body, self._at)
            if scalar is None:
                raise _unreadable()
            self._at = scalar.end()
        return self._body[start : self._at]

    def _skip_brackets(self, where: str) -> None:
        depth, outside = 0, 0
        while True:
            begin = self._at
            mark = _MARK.search(self._body, begin, begin + _WINDOW)
            self._at = mark.start() if mark else min(begin + _WINDOW, len(self._body))
            outside += self._at - begin
            if outside > ITEM_BYTES:
                words = f"{where}: more than {ITEM_BYTES} bytes outside of texts; send less at once"
                raise ProblemError("too-large", 413, words)
            if mark is None:
                if self._at == len(self._body):
                    raise _unreadable()
            elif mark[0] == b'"':
                self._skip_string()
            else:
                depth += 1 if mark[0] in b"[{" else -1
                self._at += 1
                if depth == 0:
                    return
                if depth > _DEPTH:
                    raise _unreadable()

    def _skip_string(self) -> None:
        end = self._at
        while True:
            end = self._body.find(b'"', end + 1)
            if end < 0:
                raise _unreadable()
            before = end
            while self._body[before - 1] == 0x5C:  # a backslash; an even number of them are backslashes themselves
                before -= 1
            if (end - before) % 2 == 0:
                self._at = end + 1
                return

    def _skip_space(self) -> None:
        while (space := _SPACE.match(self._body, self._at)) and space.end() > self._at:
            self._at = space.end()

    def _expect(self, mark: bytes) -> None:
        self._skip_space()
        if not self.is_at(mark):
            raise _unreadable()
        self._at += 1

    def _closed_by(self, mark: bytes) -> bool:
        """Only right after the opening one: a comma before the end is no JSON."""
        self._skip_space()
        if self.is_at(mark):
            self._at += 1
            return True
        return False

    def _separated(self, end: bytes) -> bool:
        """Whether another one follows."""
        if self._closed_by(end):
            return False
        self._expect(b",")
        self._skip_space()
        if self.is_at(end):
            raise _unreadable()
        return True


def _unreadable() -> ProblemError:
    return ProblemError("bad-request", 400, "the body is no JSON object, or too deep")
