"""Many callers of the service at once, who note what they were answered."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPT = [257, 265, 198, 18, 22, 10, 17, 9, 19, 30, 258, 198, 257, 266, 198]  # 37+2*4?


@dataclass(frozen=True, slots=True)
class Scored:
    """Log-probabilities that one revision is said to have given to a completion."""

    adapter: str
    revision: int
    completion: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: tuple[int, ...] = tuple(PROMPT)


@dataclass(slots=True)
class Notes:
    """What came back."""

    scored: list[Scored] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    refused: list[httpx.Response] = field(default_factory=list)
    broken: int = 0
    """Connections, not answers."""
    slowest_s: float = 0.0

    def note(self, answer: httpx.Response) -> None:
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        self.slowest_s = max(self.slowest_s, answer.elapsed.total_seconds())
        if answer.status_code != 200:
            self.refused.append(answer)
        elif answer.request.url.path == "/logprobs":
            for adapter in answer.json()["adapters"]:
                (sequence,) = adapter["sequences"]
                self._keep(adapter, sequence)
        else:
            body = answer.json()
            (prompt,) = body["prompts"]
            for completion in prompt["completions"]:
                self._keep(body, completion)

    def _keep(self, stamp: dict[str, Any], sequence: dict[str, Any]) -> None:
        ids, logprobs = tuple(sequence["token_ids"]), tuple(sequence["logprobs"])
        self.scored.append(Scored(stamp["adapter"], stamp["revision"], ids, logprobs))


def scoring(draw: random.Random) -> dict[str, Any]:
    """A completion that was never scored before."""
    return {"sequences": [{"prompt": PROMPT, "completion": [draw.randrange(200) for _ in range(8)]}]}


def sampling(draw: random.Random, max_tokens: int = 12) -> dict[str, Any]:
    return {"prompts": [{"prompt": PROMPT, "seed": draw.randrange(2**31)}], "n": 2, "max_tokens": max_tokens}


async def ask(client: httpx.AsyncClient, draw: random.Random, adapters: Sequence[str]) -> httpx.Response:
    """A score under all of `adapters`, or two samples of one of them."""
    if draw.random() < 0.6:
        return await client.post("/logprobs", params=[("adapter", name) for name in adapters], json=scoring(draw))
    return await client.post("/generate", params={"adapter": draw.choice(adapters)}, json=sampling(draw))


async def crowd(count: int, is_over: Callable[[], bool], call: Callable[[random.Random], Coroutine[Any, Any, None]]):
    """`count` callers, each of whom asks the next as soon as it has the last."""

    async def caller(seed: int) -> None:
        draw = random.Random(seed)
        while not is_over():
            await call(draw)

    async with asyncio.TaskGroup() as group:
        for seed in range(count):
            group.create_task(caller(seed))


async def until_answered(ask: Callable[[], Coroutine[Any, Any, httpx.Response]], notes: Notes, patience_s: float):
    """As a client does: what was cut off, and 429 and 503, is asked again."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            answer = await ask()
            if answer.status_code not in (429, 503):
                return answer
            notes.note(answer)
        except httpx.TransportError:
            notes.broken += 1
        assert time.monotonic() < deadline, "no answer"
        await asyncio.sleep(0.2)
