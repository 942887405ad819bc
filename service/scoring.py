"""Teacher log-probabilities: several adapters over the same sequences, each (sequence, revision) scored once.

All sequences of all adapters go to the engine together. It computes the first one's prompt and the others of that
prompt and adapter hit its prefix cache; media are encoded once, for they do not depend on the adapter.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from service.concurrency import gather_or_cancel
from service.engine.vllm import Engine, EngineMedia, EngineScores, LoadedAdapter
from service.http.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Scoring:
    """A sequence as the engine takes it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    media: EngineMedia
    token_ids: tuple[tuple[int, ...], ...] | None = None

    def key(self, digest: str, top_k: int) -> str:
        names = [name for name, _ in (*self.media.images, *self.media.videos)]
        text = json.dumps([digest, top_k, self.prompt, self.completion, self.token_ids, names])
        return hashlib.sha256(text.encode()).hexdigest()  # a hash, since thousands of keys of whole texts are kept


class Scorer:
    """Scores through the engine, remembering the last `keep` results. What is wanted twice at once is computed once."""

    def __init__(self, engine: Engine, metrics: Metrics, keep: int = 8192) -> None:
        self._engine = engine
        self._metrics = metrics
        self._keep = keep
        self._known: OrderedDict[str, EngineScores] = OrderedDict()
        self._flying: dict[tuple[str, LoadedAdapter | None], SingleFlight] = {}

    async def score(
        self, sequences: Sequence[Scoring], adapter: LoadedAdapter | None, digest: str, top_k: int
    ) -> list[EngineScores]:
        """In the order of `sequences`; `digest` names the weights that answer."""
        return await gather_or_cancel(self._score(sequence, adapter, digest, top_k) for sequence in sequences)

    async def _score(self, sequence: Scoring, adapter: LoadedAdapter | None, digest: str, top_k: int) -> EngineScores:
        key = sequence.key(digest, top_k)
        if key in self._known:
            self._metrics.cache_hits.inc()
            self._known.move_to_end(key)
            return self._known[key]
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
        self._known[key] = scores
        while len(self._known) > self._keep:
            self._known.popitem(last=False)
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
