"""Adapters whose weights are finite and enormous, uploaded beside eight callers of the base."""

import asyncio
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.manifest import ADAPTER_FILES
from tests.adapters.files import write_adapter
from tests.engine.service_process import ServiceProcess
from tests.engine.traffic import PROMPT, crowd

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

UPLOADS = 24
FILLS = (1e30, 3e38, 1e15)
"""The first overflows within a layer, the second at once, the third in the attention."""
CHAT = {"messages": [{"role": "user", "content": "37+2*4?"}], "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Its bounds let everything pass that float32 holds, so that the canary computes with it."""
    bounds = ("--max-adapter-value=1e39", "--max-adapter-change=1e99")
    process = ServiceProcess(tmp_path_factory.mktemp("hostile") / "store", "--dtype=float32", *bounds)
    yield process
    process.stop()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_adapter(tmp_path_factory.mktemp("huge"), fill, rank=8) for fill in FILLS]


def files_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    return {name: (name, (folder / name).read_bytes()) for name in ADAPTER_FILES}


def completion(number: int) -> list[int]:
    """Token ids whose number ends in the middle of a block of the cache."""
    draw = random.Random(number)
    return [draw.randrange(200) for _ in range(20 + number)]


async def scores(client: httpx.AsyncClient, number: int, top_k: int = 0) -> list[float]:
    body = {"sequences": [{"prompt": PROMPT, "completion": completion(number)}], "top_k": top_k}
    answer = await client.post("/logprobs", json=body, params={"adapter": "base"})
    assert answer.status_code == 200, answer.text
    return answer.json()["adapters"][0]["sequences"][0]["logprobs"]


async def chat(client: httpx.AsyncClient) -> str:
    answer = await client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def sample(client: httpx.AsyncClient, body: dict[str, Any]) -> list[float]:
    """Log-probabilities of all tokens, none where they are not asked for."""
    answer = await client.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return [value for prompt in answer.json()["prompts"] for c in prompt["completions"] for value in c["logprobs"]]


def test_refused_adapters_of_any_size_change_nothing_for_callers_beside_them(service, hostile) -> None:
    numbers = itertools.cycle(range(16))

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
            alone = [await scores(client, number) for number in range(16)]
            words = await chat(client)
            is_over = asyncio.Event()

            async def caller(draw: random.Random) -> None:
                number = next(numbers)
                # With another top_k no answer is remembered: what is compared was computed beside the uploads.
                scored = await scores(client, number, draw.randrange(1, 21))
                assert scored == pytest.approx(alone[number], abs=1e-3)
                assert await chat(client) == words
                prompt = {"prompt": [draw.randrange(200) for _ in range(9)], "seed": number}
                body = {"prompts": [prompt], "n": 2, "max_tokens": 30, "logprobs": draw.choice([0, None])}
                assert all(map(math.isfinite, await sample(client, body)))

            async with asyncio.TaskGroup() as group:
                callers = group.create_task(crowd(8, is_over.is_set, caller))
                for upload, folder in zip(range(UPLOADS), itertools.cycle(hostile), strict=False):
                    if callers.done():
                        break
                    answer = await client.put(f"/adapters/huge{upload}/1", files=files_of(folder))
                    assert (answer.status_code, answer.json()["type"]) == (422, "canary"), answer.text
                is_over.set()

    asyncio.run(scenario())
