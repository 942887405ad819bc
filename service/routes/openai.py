"""The OpenAI-compatible door: chat, completions and the list of models, by vLLM's own routes.

`model` is `base`, a branch (its head) or `branch@revision`. What is asked for is pinned until the answer ends, and
named to vLLM as the revision it is, so that the answer says which one spoke. Images are data URLs; nothing is
fetched. Left out: every other route of vLLM's.
"""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from adapters.names import BASE
from service.http.problems import ProblemError
from service.publishing.registry import Served
from service.state import MEDIA_TOKENS, ServiceState, adapter_of

router = APIRouter(tags=["OpenAI-compatible"])


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The base and the head of every branch."""
    door: ServiceState = request.app.state.door
    names = [BASE, *sorted(door.registry.heads), *sorted(door.registry.extras)]
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "coevo"} for name in names]
    return JSONResponse({"object": "list", "data": cards})


@router.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Chat, streaming too; see OpenAI's reference for the body."""
    return await _pass_on(request)


@router.post("/v1/completions")
async def complete(request: Request) -> Response:
    """Completions, streaming too; see OpenAI's reference for the body."""
    return await _pass_on(request)


async def _pass_on(request: Request) -> Response:
    door: ServiceState = request.app.state.door
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ProblemError("bad-request", 400, "the body is not JSON, or too deep") from None
    if not isinstance(body, dict) or not isinstance(body.get("model", BASE), str):
        raise ProblemError("invalid", 422, "the body is an object whose model is a text")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if not isinstance(body.get(name), int | None):
            raise ProblemError("invalid", 422, f"{name} is a number")
    _refuse_references(body)
    return _Forwarded(door, body)


def _refuse_references(value: Any) -> None:
    """Media may be data URLs; a URL to fetch or a path to open is refused wherever it stands."""
    if isinstance(value, list):
        for one in value:
            _refuse_references(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in ("url", "image_url", "video_url", "audio_url", "input_audio") and isinstance(one, str):
                if not one.startswith("data:"):
                    raise ProblemError("media-reference", 422, "media travel as data URLs; nothing is fetched here")
            elif key in (
                "prompt_embeds",
                "image_embeds",
                "mm_processor_kwargs",
                "media_io_kwargs",
                "kv_transfer_params",
            ):
                raise ProblemError("invalid", 422, f"{key} is not taken here")
            else:
                _refuse_references(one)


class _Forwarded(Response):
    """vLLM's answer to the body, streamed as it comes; the adapter stays loaded until it ends."""

    def __init__(self, door: ServiceState, body: dict[str, Any]) -> None:
        super().__init__()
        self._door = door
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door, body = self._door, self._body
        tokens = min(len(json.dumps(body)) // 3, MEDIA_TOKENS) + int(body.get("max_tokens") or MEDIA_TOKENS)
        async with door.admission.admit(tokens), door.registry.acquire(body.get("model", BASE)) as served:
            name = _model_name(served)
            door.engine.name_model(name, adapter_of(served))
            sent = json.dumps(body | {"model": name}).encode()
            headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            headers.append((b"content-length", str(len(sent)).encode()))
            await door.engine.openai({**scope, "headers": headers}, _replayed(sent, receive), send)


def _model_name(served: Served) -> str:
    """To vLLM a branch that is still at the base is the base."""
    return BASE if served.handle is None else f"{served.branch}@{served.revision}"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the connection says."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
