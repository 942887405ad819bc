"""Does the engine still work? A canary tells whether it scores, a ping whether it does anything.

Frozen is not busy: a canary may have to wait until others have finished, a ping is answered after the engine's
current step.
"""

import asyncio
import time

from service.engine.vllm import EngineMedia
from service.state import ServiceState

WATCH_S = 1.0
PING_EVERY_S = 5.0


async def ask_canary(door: ServiceState) -> None:
    """One token of the base, scored without any cache."""
    await door.engine.score([0, 1], EngineMedia(), [2], None, cached=False)


async def watch(door: ServiceState) -> str:
    """Returns when the engine is beyond help, with the reason."""
    while True:
        asked = time.monotonic()
        ping = asyncio.create_task(door.engine.ping())
        while not ping.done() or time.monotonic() - asked < PING_EVERY_S:
            await asyncio.sleep(WATCH_S)
            if door.engine.dead:
                return "the engine is dead"
            if not ping.done() and time.monotonic() - asked > door.settings.frozen_s:
                return f"the engine is frozen: it has done nothing for {door.settings.frozen_s:g} s"
        if ping.exception() is not None:
            return "the engine is dead"
