"""Teacher log-probabilities: several adapters over the same sequences, each (sequence, revision) scored once.

All sequences of all adapters go to the engine together. It computes the first one's prompt and the others of that
prompt and adapter hit its prefix cache; media are encoded once, for they do not depend on the adapter.
"""

import asyncio
import hashlib
import json
from array import array
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from service.caching import ByteCache
from service.concurrency import gather_or_cancel
from service.engine.vllm import Engine, EngineMedia, EngineScores, LoadedAdapter
from service.http.metrics import Metrics

_ENTRY_BYTES = 1000  # of an entry without its numbers: its key, the objects of three arrays


@dataclass(frozen=True, slots=True)
class Scoring:
    """A sequence as the engine takes it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    media: EngineMedia
    token_ids: tuple[tuple[int, ...], ...] | None = None

    def key(self, digest: str, top_k: int) -> str:
        """A hash, since thousands of keys of whole texts are kept. Of bytes: as text it takes ten times as long."""
        names = [name for name, _ in (*self.media.images, *self.media.videos)]
        shape = [len(row) for row in self.token_ids] if self.token_ids is not None else None
        head = json.dumps([digest, top_k, len(self.prompt), len(self.completion), shape, names])
        ids = (*self.prompt, *self.completion, *(id for row in self.token_ids or () for id in row))
        return hashlib.sha256(head.encode() + array("q", ids).tobytes()).hexdigest()


class Scorer:
    """Scores through the engine, remembering the last. What is wanted twice at once is computed once."""

    def __init__(self, engine: Engine, metrics: Metrics, keep_bytes: int = 256 * 2**20) -> None:
        self._engine = engine
        self._metrics = metrics
        self._known: ByteCache[EngineScores] = ByteCache(keep_bytes)
        self._flying: dict[tuple[str, LoadedAdapter | None], SingleFlight] = {}

    async def score(
        self, sequences: Sequence[Scoring], adapter: LoadedAdapter | None, digest: str, top_k: int
    ) -> list[EngineScores]:
        """In the order of `sequences`; `digest` names the weights that answer."""
        keys: list[str] = []
        for sequence in sequences:
            keys.append(sequence.key(digest, top_k))
            await asyncio.sleep(0)  # thousands of long ones take seconds, and others want their turn
        return await gather_or_cancel(
            self._score(key, sequence, adapter, top_k) for key, sequence in zip(keys, sequences, strict=True)
        )

    async def _score(self, key: str, sequence: Scoring, adapter: LoadedAdapter | None, top_k: int) -> EngineScores:
        if (known := self._known.get(key)) is not None:
            self._metrics.cache_hits.inc()
            return known
        # The adapter is part of the key: who joins holds it too, so it stays loaded if the first caller hangs up.
        flight_key = (key, adapter)
        flight = self._flying.get(flight_key)
        if flight is None or flight.over:
            self._metrics.cache_misses.inc()
            flight = self._flying[flight_key] = SingleFlight(self._compute(key, sequence, adapter, top_k))
        else:
            self._metrics.cache_hits.inc()
        try:
            return await flight.result()
        finally:
            if flight.over and self._flying.get(flight_key) is flight:  # a new flight may have its key by now
                del self._flying[flight_key]

    async def _compute(self, key: str, sequence: Scoring, adapter: LoadedAdapter | None, top_k: int) -> EngineScores:
        scores = await self._engine.score(
            sequence.prompt,
            sequence.media,
            sequence.completion,
            adapter,
            top_k=top_k,
            token_ids=sequence.token_ids,
        )
        self._known.put(key, scores, _ENTRY_BYTES + scores.num_bytes)
        return scores


class SingleFlight:
    """A computation that several wait for. It goes on while one of them does."""

    def __init__(self, work: Coroutine[Any, Any, EngineScores]) -> None:
        self._task = asyncio.create_task(work)
        self._waiting = 0

    @property
    def over(self) -> bool:
        """Too late to join."""
        return self._task.done() or self._task.cancelling() > 0

    async def result(self) -> EngineScores:
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)  # a caller that is cancelled leaves the task to the others
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)  # the engine lets go before the adapter does
