"""What a run tells, from the service as it is told: server-sent events, across every pause of either side.

Left out: anything but reading; and an end: whoever follows stops when he has seen enough.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

_AGAIN_S = 1.0
_SILENT_S = 60.0
"""The service says something every 15 s."""


async def follow(url: str, api_key: str | None, run: str, after: int = 0) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """Events with their numbers, from the one after `after`."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_SILENT_S, trust_env=False) as http:
        while True:
            try:
                async with http.stream("GET", f"/runs/{run}/events", params={"after": after}) as answer:
                    if answer.status_code == 200:
                        async for number, event in _events(answer):
                            after = number
                            yield number, event
            except httpx.TransportError:
                pass  # it is away, and comes back
            await asyncio.sleep(_AGAIN_S)


async def _events(answer: httpx.Response) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    number = 0
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data":
            yield number, json.loads(value)
