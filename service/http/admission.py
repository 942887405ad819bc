"""How much work is in the engine at a time, in requests and in tokens, and who waits for it.

Strictly first come, first served: nobody passes a large request that waits for room, so none is starved. One that is
larger than all the room runs alone. A waiter that gives up, or is given up on, leaves no trace.

Left out: the canary, which never asks here, and priorities. One event loop; no threads.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from service.http.problems import ProblemError
from service.openai_schemas import ChatMessage, ChatRequest, CompletionRequest, ImagePart
from service.schemas import Chat, GenerateRequest, LogprobsRequest, Message, TextPart

_TEXT_BYTES_PER_TOKEN = 3  # a guess on the high side of the token count for natural language; ids are counted exactly
_MARKS_OF_A_MESSAGE = 8  # tokens of the chat template around a message, about
_MEMORY = 0.9  # the weight of the past in the mean time that a request takes


@dataclass(eq=False, slots=True)
class _Waiter:
    tokens: int
    since: float
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Admission:
    def __init__(self, *, max_requests: int, max_tokens: int, max_waiting: int, max_wait_s: float) -> None:
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._waiters: deque[_Waiter] = deque()
        self._mean_s = 1.0  # a guess, until requests have ended
        self._closed_since: float | None = None
        self.requests = 0
        """Those that are in the engine."""
        self.tokens = 0
        """And their tokens."""

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def closed_s(self) -> float:
        """For how long nobody who came was let in, and nothing has finished."""
        return 0.0 if self._closed_since is None else time.monotonic() - self._closed_since

    @asynccontextmanager
    async def admit(self, tokens: int) -> AsyncGenerator[None]:
        """Room for a request of about so many tokens, for as long as the block lasts; 429 when it takes too long."""
        tokens = min(tokens, self._max_tokens)  # a larger request fits only when there is no other: it runs alone
        await self._enter(tokens)
        began = time.monotonic()
        try:
            yield
        finally:
            self._mean_s = _MEMORY * self._mean_s + (1 - _MEMORY) * (time.monotonic() - began)
            self._leave(tokens)

    async def _enter(self, tokens: int) -> None:
        if not self._waiters and self._fits(tokens):  # a small request does not pass those that wait
            self._take(tokens)
            return
        if self._closed_since is None:
            self._closed_since = time.monotonic()
        if len(self._waiters) >= self._max_waiting:
            raise self._busy("too many requests wait")
        waiter = _Waiter(tokens, time.monotonic())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await waiter.granted
        except BaseException as error:  # the time is over, or the caller has hung up
            if waiter.granted.done() and not waiter.granted.cancelled():
                self._leave(tokens)  # granted in the same turn of the event loop in which it gave up
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
                self._grant()  # it may have been the head that did not fit
            if isinstance(error, TimeoutError):
                raise self._busy(f"no room within {self._max_wait_s:g} s") from None
            raise

    def _fits(self, tokens: int) -> bool:
        return self.requests < self._max_requests and self.tokens + tokens <= self._max_tokens

    def _take(self, tokens: int) -> None:
        self.requests += 1
        self.tokens += tokens
        self._closed_since = None

    def _leave(self, tokens: int) -> None:
        self.requests -= 1
        self.tokens -= tokens
        # Something has finished. Who still waits has waited since now, as far as anybody can say.
        self._closed_since = time.monotonic() if self._waiters else None
        self._grant()

    def _grant(self) -> None:
        """In order, as far as the room goes. The room is taken here, so none can be lost on the way to the waiter."""
        while self._waiters:
            head = self._waiters[0]
            if not head.granted.cancelled():  # else its task has not run since
                if not self._fits(head.tokens):
                    return
                self._take(head.tokens)
                head.granted.set_result(None)
            self._waiters.popleft()

    def _busy(self, why: str) -> ProblemError:
        # About the time until those in line now are through: they go in turns of `max_requests` at a time.
        turns = 1 + self.waiting / self._max_requests
        wait_s = min(self._mean_s * turns, self._max_wait_s)
        return ProblemError("busy", 429, f"{why}; ask again later", retry_after_s=wait_s)


def tokens_of_scoring(request: LogprobsRequest, adapters: int, *, media_tokens: int, max_model_len: int) -> int:
    """Every adapter reads every sequence once."""
    total = 0
    for sequence in request.sequences:
        completion = sequence.completion
        tokens = _prompt(sequence.prompt) + (_text(completion) if isinstance(completion, str) else len(completion))
        media = media_tokens * (len(sequence.images) + len(sequence.videos))
        total += min(tokens + media, max_model_len)
    return adapters * total


def tokens_of_generation(request: GenerateRequest, *, media_tokens: int, max_model_len: int) -> int:
    """The completions of a prompt share its cache, so it counts once."""
    total = 0
    for prompt in request.prompts:
        media = media_tokens * (len(prompt.images) + len(prompt.videos))
        tokens = min(_prompt(prompt.prompt) + media, max_model_len)
        room = max(max_model_len - tokens, 1)
        total += tokens + request.n * (room if request.max_tokens is None else min(request.max_tokens, room))
    return total


def tokens_of_openai(request: ChatRequest | CompletionRequest, *, media_tokens: int, max_model_len: int) -> int:
    """As `tokens_of_generation`, of what OpenAI's clients send."""
    if isinstance(request, ChatRequest):
        limit = request.max_completion_tokens or request.max_tokens or max_model_len
        tools = _text(json.dumps([tool.model_dump() for tool in request.tools])) if request.tools else 0
        prompts = [_chat(request.messages, media_tokens) + tools]
    else:
        limit = request.max_tokens or 16  # OpenAI's default, and vLLM's
        prompts = [len(ids) if isinstance(ids, list) else _text(ids) for ids in prompts_of(request)]
    total = 0
    for prompt in prompts:
        tokens = min(prompt, max_model_len)
        total += tokens + (request.n or 1) * min(limit, max(max_model_len - tokens, 1))
    return total


def prompts_of(request: CompletionRequest) -> list[str] | list[list[int]]:
    """A single prompt stands alone, several in a list; ids of one are a list of numbers."""
    prompt: Any = request.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _prompt(prompt: list[int] | Chat) -> int:
    return len(prompt) if isinstance(prompt, list) else _chat(prompt.messages, media_tokens=0)


def _chat(messages: Iterable[Message | ChatMessage], media_tokens: int) -> int:
    total = 0
    for message in messages:
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        total += _MARKS_OF_A_MESSAGE + sum(_text(part.text) for part in parts if isinstance(part, TextPart))
        total += media_tokens * sum(isinstance(part, ImagePart) for part in parts)
    return total


def _text(text: str) -> int:
    return len(text.encode()) // _TEXT_BYTES_PER_TOKEN + 1
