"""Does the engine still work? A canary asks it, past the queue.

Frozen is not busy: it means that a canary has waited for half a minute in which nothing else finished either.
"""

import asyncio
import time

from service.door import Door
from service.engine import Media

WATCH_S = 1.0
CANARY_EVERY_S = 5.0
FROZEN_S = 30.0


async def ask_canary(door: Door) -> None:
    """One token of the base, scored without any cache."""
    await door.engine.score([0, 1], Media(), [2], None, cached=False)


async def watch(door: Door) -> str:
    """Returns when the engine is beyond help, with the reason."""
    while True:
        began = time.monotonic()
        canary = asyncio.create_task(ask_canary(door))
        while not canary.done():
            await asyncio.wait([canary], timeout=WATCH_S)
            if door.engine.dead:
                return "the engine is dead"
            if time.monotonic() - max(began, door.admission.last_finish) > FROZEN_S:
                return f"the engine is frozen: nothing finished for {FROZEN_S:.0f} s"
        if canary.exception() is not None:
            return "the engine is dead"
        for _ in range(round(CANARY_EVERY_S / WATCH_S)):
            await asyncio.sleep(WATCH_S)
            if door.engine.dead:
                return "the engine is dead"
