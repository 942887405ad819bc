"""The cores of the engine: with data parallel several, each with the base, all adapters and a prefix cache of its own.

vLLM's client speaks to all of them. What it says of an adapter has reached every core when the call returns, so a
publish is still one. A prompt goes to the core that its tokens and media name: a group's completions, their scores and
their pictures meet one cache, whoever asks and after every start.

Left out: a balance by load. It would tear apart what shares a prompt, to save what a few dozen prompts spread unevenly.
"""

import asyncio
import hashlib
from array import array
from collections.abc import Sequence
from http import HTTPStatus
from multiprocessing.connection import Connection, wait
from typing import Any

from service.engine.outputs import fail_requests
from service.processes import cpu_seconds


class EngineDiedError(Exception):
    """The request is lost: the engine gave it up, or died and is about to be started again."""


def fail_given_up(client: Any) -> None:
    """Requests of `client` that a core gives up end with `EngineDiedError`; under vLLM's own routes, with 503.

    When a core dies, vLLM ends the others. They tell what they have sampled so far as if it were an answer.
    """
    from vllm.exceptions import GracefulHTTPError
    from vllm.v1.engine import FinishReason

    class GivenUpError(EngineDiedError, GracefulHTTPError):
        """To vLLM's own routes an error with a status."""

        http_status = HTTPStatus.SERVICE_UNAVAILABLE

        def __init__(self) -> None:
            Exception.__init__(self, "the engine gave the request up; ask again")  # vLLM's class takes other arguments

    given_up = (FinishReason.ABORT, FinishReason.ERROR)
    fail_requests(client, lambda output: GivenUpError() if output.finish_reason in given_up else None)


def wait_for_coordinator() -> None:
    """vLLM's client waits for the process that coordinates the cores as long as that lives.

    It would give up after 120 s, in which such a process has not imported vLLM where others use the processors.
    """
    from vllm.v1.engine.coordinator import DPCoordinator

    coordinator: Any = DPCoordinator

    def addresses(self: Any, pipe: Connection) -> Any:
        with pipe:
            wait([pipe, self.proc.sentinel])
            try:
                return pipe.recv()
            except EOFError:
                raise RuntimeError("vLLM's coordinator of cores ended in its start") from None

    coordinator._wait_for_zmq_addrs = addresses


class Cores:
    """All cores behind one client of vLLM's."""

    def __init__(self, client: Any, count: int) -> None:
        self._client = client
        self.count = count
        self._silent: set[int] = set()

    def of(self, prompt: Sequence[int], media: Sequence[str]) -> int:
        """The core of a prompt as it is before expansion. Python's own hash of a text differs from process to process.

        The names of the media count: a data set may ask the same of every picture.
        """
        if self.count == 1:
            return 0
        key = array("q", prompt).tobytes() + "\0".join(media).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) % self.count

    async def ping(self) -> None:
        """Answered by each between two of its steps, however many requests wait in it."""
        cores = self._client.engine_core

        async def ask(number: int, identity: bytes) -> None:
            self._silent.add(number)
            await cores._call_utility_async("is_sleeping", engine=identity)
            self._silent.discard(number)

        await asyncio.gather(*(ask(number, identity) for number, identity in enumerate(cores.core_engines)))

    @property
    def silent(self) -> str:
        """Those that owe the answer to a ping, in words after "the engine"; empty with a single core."""
        return self._words(sorted(self._silent))

    @property
    def computed_s(self) -> float:
        """Seconds of the processor that the core took which owes an answer: of several the least, of one on another
        host none."""
        processes = self._client.engine_core.resources.engine_manager.processes
        return min((cpu_seconds(processes[n].pid) if n < len(processes) else 0.0 for n in self._silent), default=0.0)

    @property
    def dead(self) -> str | None:
        """What has died, in words. vLLM ends all cores when one is dead, and says so only when that is done."""
        manager = self._client.engine_core.resources.engine_manager
        ended = manager.finished_procs()
        if not self._client.errored and not ended:
            return None
        # The first to die; the rest were ended because of it.
        names = [manager.failed_proc_name] if manager.failed_proc_name else [*ended]
        return f"the engine is dead{self._words([int(name.rpartition('DP')[2]) for name in names if 'DP' in name])}"

    def _words(self, numbers: Sequence[int]) -> str:
        """Cores in words, by the numbers that their processes have in their names, from 0."""
        if self.count == 1 or not numbers:
            return ""
        return f": core {', '.join(map(str, numbers))} of 0 to {self.count - 1}"
