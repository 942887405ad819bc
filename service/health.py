"""Does the engine still work? A canary tells whether it scores, a ping whether it does anything.

Frozen is not busy: a canary may have to wait until others have finished, a ping is answered after the engine's
current step. On a CPU that step may take minutes, with a real base or beside other programs: a core that computes is
not frozen.
"""

import asyncio
import time

from service.concurrency import gather_or_cancel
from service.engine.vllm import Engine, EngineMedia

WATCH_S = 1.0
PING_EVERY_S = 5.0
COMPUTING = 0.03
"""The share of a processor's core from which an engine computes. One that waits takes less, to wake and to sleep."""


async def ask_canary(engine: Engine) -> None:
    """One token of the base, scored without any cache by every core."""
    cores = range(engine.settings.data_parallel)
    await gather_or_cancel(engine.score([0, 1], EngineMedia(), [2], None, cached=False, core=core) for core in cores)


async def watch(engine: Engine, frozen_s: float) -> str:
    """Returns when the engine is beyond help, with the reason."""
    while True:
        began = alive = time.monotonic()
        computed_s = 0.0
        ping = asyncio.create_task(engine.ping())
        # Looked at every second and not awaited: a dead engine may answer nothing at all, and is told before it froze.
        while not ping.done() or time.monotonic() - began < PING_EVERY_S:
            await asyncio.sleep(WATCH_S)
            if (dead := engine.dead) is not None:
                return dead
            if (now_s := engine.computed_s) > computed_s + COMPUTING * frozen_s:
                alive, computed_s = time.monotonic(), now_s
            if not ping.done() and time.monotonic() - alive > frozen_s:
                return f"the engine is frozen{engine.silent}: it has done nothing for {frozen_s:g} s"
        if ping.exception() is not None:
            return engine.dead or "the engine is dead"
