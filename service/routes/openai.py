"""OpenAI-compatible routes: chat, completions and the list of models, by vLLM's own routes.

`model` is `base`, a branch (its head) or `branch@revision`. The revision is pinned until the answer ends, and named to
vLLM as what it is, so that the answer says which revision spoke. Images are data URLs; nothing is fetched.

Left out: every other route of vLLM's.
"""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from adapters.names import BASE
from service.http.problems import ProblemError
from service.state import MEDIA_TOKENS, ServiceState, State, adapter_of

router = APIRouter(tags=["OpenAI-compatible"])

_MEDIA_KEYS = frozenset({"url", "image_url", "video_url", "audio_url", "input_audio"})
# Tensors, pickled or not, and arguments of the processor: these reach code that trusts whoever sends them.
_REFUSED_KEYS = frozenset(
    {"prompt_embeds", "image_embeds", "mm_processor_kwargs", "media_io_kwargs", "kv_transfer_params"}
)

_COMMON: dict[str, Any] = {
    "model": {"type": "string", "description": "`base`, a branch or `branch@revision`"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "stream": {"type": "boolean"},
}
_CONTENT: dict[str, Any] = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _CONTENT},
}


def _body(field: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """For the schema: vLLM reads the body, and takes every other field of OpenAI's reference too."""
    properties = {**_COMMON, field: schema}
    content = {
        "schema": {"type": "object", "required": [field], "properties": properties},
        "example": {"model": BASE, field: example, "max_tokens": 40},
    }
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


_CHAT_BODY = _body("messages", {"type": "array", "items": _MESSAGE}, [{"role": "user", "content": "37+2*4?"}])
_COMPLETIONS_BODY = _body("prompt", {"type": "string"}, "37+2*4?")


@router.get("/v1/models")
async def models(state: State) -> Response:
    """The base and the head of every branch."""
    names = [BASE, *sorted(state.registry.heads), *sorted(state.registry.extras)]
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "coevo"} for name in names]
    return JSONResponse({"object": "list", "data": cards})


@router.post("/v1/chat/completions", openapi_extra=_CHAT_BODY)
async def chat(request: Request, state: State) -> Response:
    """Chat, streaming too; see OpenAI's reference for the body."""
    return await _pass_on(request, state)


@router.post("/v1/completions", openapi_extra=_COMPLETIONS_BODY)
async def complete(request: Request, state: State) -> Response:
    """Completions, streaming too; see OpenAI's reference for the body."""
    return await _pass_on(request, state)


async def _pass_on(request: Request, state: ServiceState) -> Response:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ProblemError("bad-request", 400, "the body is not JSON, or too deep") from None
    # vLLM checks the rest; these are read here, before it sees them.
    if not isinstance(body, dict) or not isinstance(body.get("model", BASE), str):
        raise ProblemError("invalid", 422, "the body is an object whose model is a text")
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if not isinstance(body.get(name), int | None):
            raise ProblemError("invalid", 422, f"{name} is a number")
    _refuse_references(body)
    return _Forwarded(state, body)


def _refuse_references(value: Any) -> None:
    """Media may be data URLs; a URL to fetch or a path to open is refused wherever it stands."""
    if isinstance(value, list):
        for item in value:
            _refuse_references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _MEDIA_KEYS and isinstance(item, str):
                if not item.startswith("data:"):
                    raise ProblemError("media-reference", 422, "media travel as data URLs; nothing is fetched here")
            elif key in _REFUSED_KEYS:
                raise ProblemError("invalid", 422, f"{key} is not taken here")
            else:
                _refuse_references(item)


class _Forwarded(Response):
    """vLLM's answer to the body, streamed as it comes; the adapter stays loaded until it ends."""

    def __init__(self, state: ServiceState, body: dict[str, Any]) -> None:
        super().__init__()
        self._state = state
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, body = self._state, self._body
        # For admission only, and rough: three bytes a token, and a body of pictures in base64 counts as one picture.
        tokens = min(len(json.dumps(body)) // 3, MEDIA_TOKENS) + int(body.get("max_tokens") or MEDIA_TOKENS)
        async with state.admission.admit(tokens), state.registry.acquire(body.get("model", BASE)) as served:
            # To vLLM a branch that is still at the base is the base.
            name = BASE if served.handle is None else f"{served.branch}@{served.revision}"
            state.engine.name_model(name, adapter_of(served))
            forwarded = json.dumps(body | {"model": name}).encode()
            headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            headers.append((b"content-length", str(len(forwarded)).encode()))
            messages: list[Message] = [{"type": "http.request", "body": forwarded, "more_body": False}]

            async def replay() -> Message:
                # The body once, then whatever the connection says: that the caller has hung up.
                return messages.pop() if messages else await receive()

            await state.engine.openai({**scope, "headers": headers}, replay, send)
