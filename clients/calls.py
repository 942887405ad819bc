"""One request to the service: what is sent, how its response is read, and what in it is an error.

Left out: sending, waiting and trying again (`client`).
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from adapters.manifest import Manifest
from clients.retries import ServiceError, error_of
from service.schemas import SAFETENSORS, AdaptersResponse, LogprobsRequest, LogprobsResponse, MediaResponse, Problem
from service.wire import ScoredArrays, WireError, decode_logprobs, decode_scores

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

# A refusal is JSON whatever was asked for, so its type is named beside that of the arrays.
BINARY = {"accept": f"{SAFETENSORS}, application/problem+json"}
JSON = {"content-type": "application/json"}

# Prompts of one request: at most so many, and at most so many tokens of completions between them.
_MAX_PROMPTS = 16
_MAX_TOKENS = 2048
_CHUNK = 2**20
"""Bytes of a file that are read, and then sent, at a time."""


@dataclass(frozen=True, slots=True)
class DownloadTarget:
    """A file that is written piece by piece, and gets its name when it is whole and has the right hash."""

    path: Path
    sha256: str

    @contextmanager
    def open(self, response: httpx.Response) -> Generator[Callable[[bytes], None]]:
        part = self.path.with_name(f".{self.path.name}.part")
        sha256 = hashlib.sha256()
        try:
            with part.open("wb") as file:

                def write(piece: bytes) -> None:
                    sha256.update(piece)
                    file.write(piece)

                yield write
            if sha256.hexdigest() != self.sha256:
                raise bad_response(response, "the file has not the hash that the manifest states")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, which may be sent more than once, and how to read its response."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content: bytes | None = None
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """The parts of a form, with `fields`; read while they are sent."""
    body: Path | None = None
    """A file instead of `content`; read while it is sent."""
    media: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """What can be uploaded when the service does not know it, by id."""
    target: DownloadTarget | None = None
    """The file for the response's body; without one it goes into memory."""
    any_base: bool = False
    """Whether it may be sent before the base is known to be the right one."""
    is_long: bool = False
    """Whether the engine works for it. Of these so many are under way, and the others wait."""

    @contextmanager
    def arguments(self) -> Generator[dict[str, Any]]:
        """What httpx takes; the files are open inside the block."""
        with ExitStack() as stack:
            # Opened anew for each try: the last one has read them, in part or to their end.
            files = {name: (name, stack.enter_context(path.open("rb"))) for name, path in self.files.items()}
            headers = dict(self.headers)
            if self.body is not None:
                headers["content-length"] = str(self.body.stat().st_size)  # or it would go in pieces of unsaid number
                body: dict[str, Any] = {"content": _chunks(stack.enter_context(self.body.open("rb")))}
            else:
                body = {"data": self.fields, "files": files} if files else {"content": self.content}
            yield {
                "method": self.method,
                "url": self.path,
                "params": [*self.params],
                "headers": headers,
                **body,
            }


async def _chunks(file: BinaryIO) -> AsyncGenerator[bytes]:
    while chunk := await asyncio.to_thread(file.read, _CHUNK):
        yield chunk


def path_of(*parts: str | int) -> str:
    # `safe` leaves out the slash: a name that holds one must not reach another route.
    return "".join(f"/{quote(str(part), safe='@')}" for part in parts)


def media_id(data: bytes) -> str:
    """What stands in a request in place of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put_media(data: bytes) -> Call[str]:
    def read(response: httpx.Response) -> str:
        id = read_json(response, MediaResponse).id
        if id != media_id(data):
            raise bad_response(response, "it stored other bytes than were sent")
        return id

    return Call("PUT", "/media", read, headers={"content-type": "application/octet-stream"}, content=data)


def unknown_media(error: ServiceError, media: Mapping[str, bytes]) -> list[Call[str]]:
    """The uploads after which the request may be repeated. Raises when they are not what is wrong."""
    ids = error.more.get("ids")
    if error.type != "unknown-media" or not isinstance(ids, list) or not ids or not all(id in media for id in ids):
        raise error
    return [put_media(media[id]) for id in ids]


def score(
    adapters: Sequence[str],
    request: LogprobsRequest,
    media: Mapping[str, bytes],
    read: Callable[[httpx.Response], T],
) -> Call[T]:
    return Call(
        "POST",
        "/logprobs",
        read,
        params=[("adapter", name) for name in adapters],
        headers=JSON | BINARY,
        content=request.model_dump_json(exclude_none=True).encode(),
        media=media,
        is_long=True,
    )


def prompts_together(n: int, max_tokens: int | None) -> int:
    """How many prompts travel in one request of `generate`.

    Long completions come prompt by prompt: none waits for the longest of many, and none is made again when another is
    lost. Of short ones the requests would cost more than the completions.
    """
    return 1 if max_tokens is None else min(_MAX_PROMPTS, max(1, _MAX_TOKENS // (n * max_tokens)))


def check_response(response: httpx.Response) -> None:
    """Raises the error that a response is. Its body has been read."""
    if response.is_success:
        return
    if not response.is_error:
        raise bad_response(response, "a redirection")
    try:
        problem = Problem.model_validate_json(response.content)
        error = error_of(problem.type, response.status_code, problem.detail)
        error.more = dict(problem.model_extra or {})
    except ValidationError:  # a proxy on the way answered
        detail = f"{response.request.method} {response.url.path}: status {response.status_code} without a reason"
        error = error_of(f"http-{response.status_code}", response.status_code, detail)
    if response.status_code == 401:  # its own words are for who writes requests by hand
        where = f"{response.url.scheme}://{response.url.netloc.decode()}"
        error = error_of(
            error.type, 401, f"{where}: the service wants another key; set COEVO_API_KEY to the one it has"
        )
    wait = response.headers.get("retry-after", "")
    error.retry_after_s = float(wait) if wait.isdecimal() else None  # the service never says it as a date
    raise error


def read_arrays(response: httpx.Response, decode: Callable[[bytes], Model], model: type[Model]) -> Model:
    if _content_type(response) != SAFETENSORS:
        return read_json(response, model)
    try:
        return decode(response.content)
    except WireError as error:
        raise bad_response(response, str(error)) from None


def read_logprobs(response: httpx.Response) -> LogprobsResponse:
    return read_arrays(response, decode_logprobs, LogprobsResponse)


def read_scores(response: httpx.Response) -> list[list[ScoredArrays]]:
    if _content_type(response) != SAFETENSORS:
        raise bad_response(response, f"its content type is {_content_type(response)[:80]!r}")
    try:
        return decode_scores(response.content)
    except WireError as error:
        raise bad_response(response, str(error)) from None


def read_json(response: httpx.Response, model: type[Model]) -> Model:
    if _content_type(response) != "application/json":
        # Cut off: another program's header may be of any length, and this ends in one line.
        raise bad_response(response, f"its content type is {_content_type(response)[:80]!r}")
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise bad_response(response, f"{error.error_count()} places do not fit {model.__name__}") from None


def bad_response(response: httpx.Response, reason: str) -> ServiceError:
    """Nothing that another try would mend: another program listens there, or another version."""
    detail = f"{response.request.method} {response.url.path}: not an answer of this service: {reason}"
    return ServiceError("bad-answer", response.status_code, detail)


def _content_type(response: httpx.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_manifest(response: httpx.Response) -> Manifest:
    return read_json(response, Manifest)


def read_nothing(response: httpx.Response) -> None:
    return None


def describe(branch: str, revision: int) -> Call[Manifest]:
    return Call("GET", path_of("adapters", branch, revision), read_manifest)


# Both may be asked of a service with another base: they say which it is, or nothing that depends on it.
ADAPTERS = Call("GET", "/adapters", lambda response: read_json(response, AdaptersResponse), any_base=True)
READY = Call("GET", "/readyz", read_nothing, any_base=True)
