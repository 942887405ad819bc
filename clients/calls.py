"""What a client asks and how an answer is read: pure functions, shared by the two clients.

Left out: sending, waiting and trying again.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from adapters.manifest import ADAPTER_FILES, CONFIG, OPTIMISER, WEIGHTS, Manifest, files_digest
from clients.retries import RefusedError, ServiceError, error_of
from service import schemas
from service.wire import WireError, decode_generated, decode_logprobs

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

_BINARY = {"accept": f"{schemas.SAFETENSORS}, application/problem+json"}
_JSON = {"content-type": "application/json"}
_MOST_TOGETHER = 16
_TOKENS_TOGETHER = 2048


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, which may be sent more than once, and how to read its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    content: bytes | None = None
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Sent as a form, read while they are sent."""
    media: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """By id: what can be uploaded when the service does not know it."""
    to: "DownloadTarget | None" = None
    """Where the answer's body goes, if not into memory."""
    any_base: bool = False
    """Whether it may be asked before the base is known to be the right one."""

    @contextmanager
    def arguments(self) -> Generator[dict[str, Any]]:
        """For httpx; the files are open inside the block."""
        with ExitStack() as stack:
            files = {name: (name, stack.enter_context(path.open("rb"))) for name, path in self.files.items()}
            body = {"data": self.fields, "files": files} if files else {"content": self.content}
            yield {
                "method": self.method,
                "url": self.path,
                "params": [*self.params],
                "headers": dict(self.headers),
                **body,
            }


def media_id(data: bytes) -> str:
    """What stands in a request in place of the bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def logprobs(
    adapters: Sequence[str], request: schemas.LogprobsRequest, media: Mapping[str, bytes]
) -> Call[schemas.LogprobsResponse]:
    return Call(
        "POST",
        "/logprobs",
        lambda answer: _arrays(answer, decode_logprobs, schemas.LogprobsResponse),
        params=[("adapter", name) for name in adapters],
        headers=_JSON | _BINARY,
        content=request.model_dump_json(exclude_none=True).encode(),
        media=media,
    )


def generate(
    adapter: str, request: schemas.GenerateRequest, media: Mapping[str, bytes]
) -> list[Call[schemas.GenerateResponse]]:
    """In the order of the prompts, each with all its completions: one prompt a call, or several with short answers."""
    size = prompts_together(request.n, request.max_tokens)
    return [
        Call(
            "POST",
            "/generate",
            lambda answer: _arrays(answer, decode_generated, schemas.GenerateResponse),
            params=[("adapter", adapter)],
            headers=_JSON | _BINARY,
            content=request.model_copy(update={"prompts": prompts}).model_dump_json(exclude_none=True).encode(),
            media=media,
        )
        for prompts in (request.prompts[start : start + size] for start in range(0, len(request.prompts), size))
    ]


def prompts_together(n: int, max_tokens: int | None) -> int:
    """Prompts in one call of `generate`. Long answers come one by one: none waits for the longest of many, and none is
    made again when another is lost. Of short ones the calls would cost more than the answers."""
    return 1 if max_tokens is None else min(_MOST_TOGETHER, max(1, _TOKENS_TOGETHER // (n * max_tokens)))


def by_prompt(answer: schemas.GenerateResponse) -> list[schemas.GenerateResponse]:
    return [answer.model_copy(update={"prompts": [one]}) for one in answer.prompts]


def adapters() -> Call[schemas.AdaptersResponse]:
    return Call("GET", "/adapters", lambda answer: _json(answer, schemas.AdaptersResponse), any_base=True)


def describe(branch: str, revision: int) -> Call[Manifest]:
    return Call("GET", _path("adapters", branch, revision), lambda answer: _json(answer, Manifest))


def publish(
    branch: str,
    revision: int,
    folder: Path,
    *,
    parent: int,
    token: int | None,
    job: str | None,
    base: str | None,
    meta: Mapping[str, Any],
) -> Call[Manifest]:
    """The adapter's two files in `folder`, and the optimiser's when it is there."""
    files = {name: folder / name for name in (WEIGHTS, CONFIG, OPTIMISER) if (folder / name).exists()}
    missing = [name for name in ADAPTER_FILES if name not in files]
    if missing:
        raise error_of("invalid", None, f"{folder}: no {' and no '.join(missing)} here; name an adapter's folder")
    digest = files_digest(files)

    def read(answer: httpx.Response) -> Manifest:
        info = _json(answer, Manifest)
        if info.digest != digest:
            raise _bad(answer, f"it stored {info.digest}, sent was {digest}")
        return info

    fields = {
        "parent": parent,
        "token": token,
        "job": job,
        "base": base,
        "meta": json.dumps(dict(meta), allow_nan=False),
    }
    given = {name: str(value) for name, value in fields.items() if value is not None}
    return Call("PUT", _path("adapters", branch, revision), read, fields=given, files=files)


def fork(branch: str, origin: str) -> Call[Manifest]:
    return Call(
        "POST",
        _path("adapters", branch),
        lambda answer: _json(answer, Manifest),
        headers=_JSON,
        content=json.dumps({"from": origin}).encode(),
    )


def retire(branch: str, revision: int) -> Call[None]:
    return Call("DELETE", _path("adapters", branch, revision), lambda answer: None)


def download(branch: str, revision: int, file: str, to: Path, manifest: Manifest) -> Call[Path]:
    """`to` gets its name when the file is whole and has the manifest's hash."""
    if file not in manifest.files:
        names = ", ".join(manifest.files) or "none"
        raise error_of("not-found", None, f"{branch}@{revision} has no {file}; its files are {names}")
    path = _path("adapters", branch, revision, file)
    return Call("GET", path, lambda answer: to, to=DownloadTarget(to, manifest.files[file].sha256))


def put_media(data: bytes) -> Call[str]:
    def read(answer: httpx.Response) -> str:
        id = _json(answer, schemas.MediaResponse).id
        if id != media_id(data):
            raise _bad(answer, "it stored other bytes than were sent")
        return id

    return Call("PUT", "/media", read, headers={"content-type": "application/octet-stream"}, content=data)


def put_rollouts(run: str, branch: str, step: int, rollouts: schemas.StepRollouts) -> Call[None]:
    """Packed as fast as can be: it is mostly digits."""
    return Call(
        "PUT",
        _path("runs", run, "rollouts", branch, step),
        lambda answer: None,
        headers=_JSON | {"content-encoding": "gzip"},
        content=gzip.compress(rollouts.model_dump_json().encode(), 1),
    )


def rollouts(run: str, branch: str, step: int) -> Call[schemas.StepRollouts]:
    path = _path("runs", run, "rollouts", branch, step)
    return Call("GET", path, lambda answer: _json(answer, schemas.StepRollouts))


def runs() -> Call[list[schemas.RunInfo]]:
    return Call("GET", "/runs", lambda answer: _json(answer, schemas.RunsResponse).runs)


def run(id: str) -> Call[schemas.RunInfo]:
    return Call("GET", _path("runs", id), lambda answer: _json(answer, schemas.RunInfo))


def ready() -> Call[None]:
    return Call("GET", "/readyz", lambda answer: None, any_base=True)


def unknown_media(error: ServiceError, media: Mapping[str, bytes]) -> list[Call[str]]:
    """The uploads after which the request may be repeated. Raises when they are not what is wrong."""
    if error.type != "unknown-media":
        raise error
    ids = error.more.get("ids")
    if not isinstance(ids, list) or not ids or not all(id in media for id in ids):
        raise error
    return [put_media(media[id]) for id in ids]


def check_base(info: schemas.AdaptersResponse, digest: str, url: str) -> None:
    if info.base.digest != digest:
        other = f"serves the base {info.base.name} ({info.base.digest}), wanted is {digest}"
        raise RefusedError("other-base", None, f"{url}: {other}; start one for this base, or mend COEVO_SERVICE_URL")


def check(answer: httpx.Response) -> None:
    """Raises what the answer says, if it is an error. Its body has been read."""
    if answer.is_success:
        return
    if not answer.is_error:
        raise _bad(answer, "a redirection")
    try:
        problem = schemas.Problem.model_validate_json(answer.content)
        error = error_of(problem.type, answer.status_code, problem.detail)
        error.more = dict(problem.model_extra or {})
    except ValidationError:  # something on the way answered
        what = f"{answer.request.method} {answer.url.path}: status {answer.status_code} without a reason"
        error = error_of(f"http-{answer.status_code}", answer.status_code, what)
    wait = answer.headers.get("retry-after", "")
    error.retry_after_s = float(wait) if wait.isdecimal() else None  # the service never says it as a date
    raise error


@dataclass(frozen=True, slots=True)
class DownloadTarget:
    """Where a body goes by pieces: a file that gets its name when it is whole and right."""

    path: Path
    sha256: str

    @contextmanager
    def open(self, answer: httpx.Response) -> Generator[Callable[[bytes], None]]:
        part = self.path.with_name(f".{self.path.name}.part")
        found = hashlib.sha256()
        try:
            with part.open("wb") as file:

                def write(piece: bytes) -> None:
                    found.update(piece)
                    file.write(piece)

                yield write
            if found.hexdigest() != self.sha256:
                raise _bad(answer, "the file has not the hash that the manifest states")
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


def _path(*parts: str | int) -> str:
    return "".join(f"/{quote(str(part), safe='@')}" for part in parts)


def _arrays(answer: httpx.Response, decode: Callable[[bytes], Model], model: type[Model]) -> Model:
    if _content_type(answer) != schemas.SAFETENSORS:
        return _json(answer, model)
    try:
        return decode(answer.content)
    except WireError as error:
        raise _bad(answer, str(error)) from None


def _json(answer: httpx.Response, model: type[Model]) -> Model:
    if _content_type(answer) != "application/json":
        raise _bad(answer, f"its content type is {_content_type(answer)[:80]!r}")
    try:
        return model.model_validate_json(answer.content)
    except ValidationError as error:
        raise _bad(answer, f"{error.error_count()} places do not fit {model.__name__}") from None


def _content_type(answer: httpx.Response) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _bad(answer: httpx.Response, why: str) -> ServiceError:
    """Nothing that asking again would mend: another program answers there, or another version."""
    what = f"{answer.request.method} {answer.url.path}: not an answer of this service: {why}"
    return ServiceError("bad-answer", answer.status_code, what)
