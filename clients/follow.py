"""A run's events as they happen: server-sent events from the service, across every pause of either side.

Left out: anything but reading; and an end: the caller stops when it has seen enough.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx

_PAUSE_S = 1.0
"""Between two connections: also after an end without an error, or a service that refuses would be asked in a loop."""
_SILENT_S = 60.0
"""A connection that is silent for so long is dead: the service sends something every 15 s."""


async def follow(url: str, api_key: str | None, run: str, after: int = 0) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """Events with their numbers, from the one that comes after number `after`."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=_SILENT_S, trust_env=False) as http:
        while True:
            try:
                async with http.stream("GET", f"/runs/{run}/events", params={"after": after}) as response:
                    if response.status_code == 200:
                        async for number, event in _events(response):
                            # Kept before the event is given away: a connection that breaks now goes on behind it.
                            after = number
                            yield number, event
            except httpx.TransportError:
                pass  # the service is away, and comes back
            await asyncio.sleep(_PAUSE_S)


async def _events(response: httpx.Response) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    number = 0
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)  # the service sends the id first
        elif name == "data":
            yield number, json.loads(value)
