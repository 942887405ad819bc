"""Cores of the engine on a host without a service: they work for the one at another host's address.

vLLM's `--headless`. Its cores come to the first host's port, are told where the rest is, and answer the client there.
They cannot see that it is gone: their sockets wait for it for ever, and a service that is started again wants new ones.
But a service pings its cores every few seconds, so a core that hears nothing ends, and its host starts it again.

Left out: the adapters. They are read from the folder in which the service has them, which all hosts share.
"""

import os
import threading
import time
from typing import Any

SILENCE_VARIABLE = "COEVO_SILENT_S"
"""Seconds without a ping after which a core ends; set in the processes of such a host alone."""
FIRST_PING_S = 1800.0
"""Before the first ping a service loads, and waits for its slowest host: minutes with a large base."""
LOOK_S = 1.0


def run_cores(args: Any, silent_s: float) -> None:
    """Until a core ends, or SIGTERM."""
    from vllm.entrypoints.cli.serve import run_headless

    os.environ[SILENCE_VARIABLE] = str(silent_s)
    args.headless, args.api_server_count = True, 0
    run_headless(args)


def end_when_silent() -> None:
    """In each of vLLM's processes; only cores of such a host hear pings."""
    if (silent := os.environ.get(SILENCE_VARIABLE)) is None:
        return
    from vllm.v1.engine.core import EngineCoreProc

    core: Any = EngineCoreProc
    start, answer = core.run_busy_loop, core.is_sleeping
    heard_s = [time.monotonic() + FIRST_PING_S]  # a list: both threads see it

    def run_busy_loop(self: Any) -> None:
        threading.Thread(target=_end_after, args=(heard_s, float(silent)), daemon=True).start()
        start(self)

    def is_sleeping(self: Any) -> bool:
        heard_s[0] = time.monotonic()
        return answer(self)

    core.run_busy_loop, core.is_sleeping = run_busy_loop, is_sleeping


def _end_after(heard_s: list[float], silent_s: float) -> None:
    while time.monotonic() - heard_s[0] <= silent_s:
        time.sleep(LOOK_S)
    print(f"coevo serve: no word from the service for {silent_s:g} s; this host's cores end", flush=True)
    os._exit(1)  # at once: nobody is there to be answered
