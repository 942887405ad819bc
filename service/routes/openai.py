"""OpenAI-compatible routes: chat, completions and the list of models, by vLLM's own routes.

`model` is `base`, a branch (its head) or `branch@revision`. The revision is pinned until the answer ends, and named to
vLLM as what it is, so that the answer says which revision spoke. `openai_schemas` says which keys are taken. Images go
through `service.media` first: vLLM is given the pixels that the other routes would see, as a PNG.

Left out: every other route of vLLM's.
"""

import asyncio
import base64
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from adapters.names import BASE
from service.engine.vllm import EngineDiedError
from service.http.admission import prompts_of, tokens_of_openai
from service.http.bodies import JsonRoute
from service.http.problems import ProblemError
from service.inputs import InputError, check_ids, check_vision
from service.media import encode_image
from service.mediastore import is_id
from service.openai_schemas import ChatRequest, CompletionRequest, ImagePart
from service.state import MEDIA_TOKENS, ServiceState, State, adapter_of

router = APIRouter(tags=["OpenAI-compatible"], route_class=JsonRoute)

_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,20};base64,")
_RETRY_AFTER_S = b"1"


@router.get("/v1/models")
async def models(state: State) -> Response:
    """The base and the head of every branch."""
    names = [BASE, *sorted(state.registry.heads), *sorted(state.registry.extras)]
    cards = [{"id": name, "object": "model", "created": 0, "owned_by": "coevo"} for name in names]
    return JSONResponse({"object": "list", "data": cards})


@router.post("/v1/chat/completions", response_class=Response)
async def chat(body: ChatRequest, state: State) -> Response:
    """Chat, streaming too; see OpenAI's reference for what the keys mean."""
    if (body.top_logprobs or 0) > state.settings.engine.top_k:
        raise InputError("top_logprobs", f"at most {state.settings.engine.top_k} tokens are told; lower it")
    if body.tools and state.settings.engine.tool_parser is None:
        raise InputError("tools", "this service has no parser of tool calls; start it with --tool-parser=hermes")
    images = [part.image_url.url for part in _images(body)]
    check_vision(bool(images), state.engine, "messages")
    if len(images) > state.settings.media.max_images:
        raise InputError("messages", f"{len(images)} images; at most {state.settings.media.max_images} are taken")
    for url in images:
        if not is_id(url) and not _DATA_URL.match(url):
            words = "images travel as data URLs, or as the sha256:HEX that PUT /media answers; nothing is fetched here"
            raise ProblemError("media-reference", 422, words)
    state.media.check_known(images)
    _check_texts(body.model_dump(include={"messages", "tools"}), state)
    return _Forwarded(state, body)


@router.post("/v1/completions", response_class=Response)
async def complete(body: CompletionRequest, state: State) -> Response:
    """Completions, streaming too; see OpenAI's reference for what the keys mean."""
    if (body.logprobs or 0) > state.settings.engine.top_k:
        raise InputError("logprobs", f"at most {state.settings.engine.top_k} tokens are told; lower it")
    for prompt in prompts_of(body):
        if isinstance(prompt, str):
            _check_texts(prompt, state)
        else:
            check_ids(prompt, state.engine, "prompt")
            if any(id in prompt for id in state.engine.pads.values()):
                raise InputError("prompt", "holds a pad token of an image or a video, and none is here")
    return _Forwarded(state, body)


def _check_texts(value: Any, state: ServiceState) -> None:
    """A pad token without an image ends in the engine, which looks for the image."""
    if isinstance(value, str):
        for pad in state.engine.pad_texts:
            if pad in value:
                raise InputError("text", f"{pad} stands for an image or a video; send one, or leave it out")
    elif isinstance(value, dict | list):
        items: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for item in items:
            _check_texts(item, state)


def _images(body: ChatRequest | CompletionRequest) -> list[ImagePart]:
    messages = body.messages if isinstance(body, ChatRequest) else []
    contents = [message.content for message in messages if not isinstance(message.content, str)]
    return [part for parts in contents for part in parts if isinstance(part, ImagePart)]


class _Forwarded(Response):
    """vLLM's answer to the body, streamed as it comes; the adapter stays loaded until it ends."""

    def __init__(self, state: ServiceState, body: ChatRequest | CompletionRequest) -> None:
        super().__init__()
        self._state = state
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, settings = self._state, self._state.settings
        tokens = tokens_of_openai(self._body, media_tokens=MEDIA_TOKENS, max_model_len=settings.engine.max_model_len)
        async with state.admission.admit(tokens), state.registry.acquire(self._body.model) as served:
            # To vLLM a branch that is still at the base is the base.
            name = BASE if served.handle is None else f"{served.branch}@{served.revision}"
            state.engine.name_model(name, adapter_of(served))
            answer = _Answer(send, settings.send_timeout_s)
            try:
                async with asyncio.timeout(settings.request_timeout_s):
                    forwarded = await self._encoded(name)
                    headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
                    headers.append((b"content-length", str(len(forwarded)).encode()))
                    messages: list[Message] = [{"type": "http.request", "body": forwarded, "more_body": False}]

                    async def replay() -> Message:
                        # The body once, then whatever the connection says: that the caller has hung up.
                        return messages.pop() if messages else await receive()

                    await state.engine.openai({**scope, "headers": headers}, replay, answer)
            except TimeoutError:
                if not answer.has_begun:
                    words = f"the engine did not end the request within {settings.request_timeout_s:g} s"
                    raise ProblemError("too-slow", 504, words) from None
                # A caller that does not read on, or an answer without an end: the server closes the connection.
            if not answer.has_begun and state.engine.dead:
                raise EngineDiedError

    async def _encoded(self, name: str) -> bytes:
        """The body as vLLM takes it. What it does not know of OpenAI's is not in it, and null is left out."""
        body = self._body.model_dump(exclude_none=True, by_alias=True, exclude={"user"})
        contents = [message["content"] for message in body.get("messages", [])]
        for part in (part for content in contents if isinstance(content, list) for part in content):
            if part["type"] == "image_url":
                part["image_url"] = {"url": await self._pixels(part["image_url"]["url"])}
        return await asyncio.to_thread(lambda: json.dumps(body | {"model": name}).encode())

    async def _pixels(self, url: str) -> str:
        data = await asyncio.to_thread(self._state.media.resolve, _DATA_URL.sub("", url, count=1))
        ((_, image),) = (await self._state.decoder([data], [])).images
        png = await asyncio.to_thread(lambda: encode_image(np.asarray(image)))
        return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class _Answer:
    """What vLLM sends, on its way to the caller, who must read on.

    The head waits for the first piece of the body: a stream that begins with an error has that error's status.
    """

    def __init__(self, send: Send, timeout_s: float) -> None:
        self._send = send
        self._timeout_s = timeout_s
        self._head: Message | None = None
        self._is_over = False
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None:
            head, self._head, self.has_begun = self._head, None, True
            if (error := _error_of(message.get("body", b""))) is not None:
                self._is_over = True
                data = json.dumps({"error": error}).encode()
                length = str(len(data)).encode()
                headers = [(b"content-type", b"application/json"), (b"content-length", length)]
                head = {**head, "status": error["code"], "headers": headers}
                message = {"type": "http.response.body", "body": data, "more_body": False}
            if head["status"] == 503:
                head = {**head, "headers": [*head["headers"], (b"retry-after", _RETRY_AFTER_S)]}
            await self._in_time(head)
        await self._in_time(message)

    async def _in_time(self, message: Message) -> None:
        async with asyncio.timeout(self._timeout_s):
            await self._send(message)


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The error in the first event of a stream."""
    if not body.startswith(b'data: {"error"'):
        return None
    error = json.loads(body.removeprefix(b"data: ").partition(b"\n")[0])["error"]
    return error if isinstance(error.get("code"), int) and 400 <= error["code"] < 600 else None
