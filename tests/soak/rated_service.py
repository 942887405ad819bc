"""The service with an engine that makes tokens of chance at a given rate: all else in it is the real one.

    python -m tests.soak.rated_service RECIPE --rate 2000 --speed 600 --port 0 --store DIR ...

It decodes `max_num_seqs` sequences together, first come, first served, each at its share of the rate. Time goes `speed`
times faster than the clock: the caller divides the limits by it.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from service import app, command
from service import settings as all_settings
from service.engine.vllm import EngineMedia, EngineScores, LoadedAdapter, Sampled
from service.settings import EngineNumbers, MediaNumbers, read
from trainer.recipe.file import load
from trainer.recipe.limits import READ_RATE
from trainer.recipe.serving import service_numbers


class RatedEngine:
    """What the routes ask of an engine, without a model."""

    dead = None
    silent = ""
    version = "rated"
    openai = None
    image_pixels = (1024, 16384)

    def __init__(self, base: Path, settings: EngineNumbers, tokens_per_s: float) -> None:
        self.settings = settings
        self.dtype = "float32"
        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        self.eos_id = self.tokenizer.eos_token_id
        self.pads = {kind: self.tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")}
        self.vocabulary_size = len(self.tokenizer)
        self.special_ids = frozenset(self.tokenizer.all_special_ids)
        ordinary = set(range(len(self.tokenizer))) - self.special_ids - set(self.pads.values())
        self._ordinary = np.array(sorted(ordinary), np.int32)
        self._seats = asyncio.Semaphore(settings.max_num_seqs)
        self._tokens_per_s = tokens_per_s / settings.max_num_seqs
        self._numbers = iter(range(10**9))

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def text_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    async def load(self, name: str, folder: Path) -> LoadedAdapter:
        return LoadedAdapter(name, next(self._numbers), folder)

    async def unload(self, handle: object) -> None: ...

    async def ping(self) -> None: ...

    async def _work(self, tokens: float) -> None:
        async with self._seats:
            await asyncio.sleep(tokens / self._tokens_per_s)

    async def generate(self, prompt, media, adapter, *, n, max_tokens, seed, **_) -> tuple[list[int], list[Sampled]]:
        nothing = np.zeros((max_tokens, 0))

        async def completion(number: int) -> Sampled:
            await self._work(max_tokens + len(prompt) / READ_RATE / n)
            chance = np.random.default_rng((seed, number))
            ids = chance.choice(self._ordinary, max_tokens)
            logprobs_C = -chance.exponential(1.0, max_tokens).astype(np.float32)
            return Sampled(
                tuple(ids.tolist()), logprobs_C, nothing.astype(np.int32), nothing.astype(np.float32), "length"
            )

        return list(prompt), list(await asyncio.gather(*map(completion, range(n))))

    async def score(
        self, prompt, media: EngineMedia, completion, adapter, *, top_k=0, token_ids=None, cached=True, core=None
    ) -> EngineScores:
        await self._work((len(prompt) + len(completion)) / READ_RATE)
        count = len(completion)
        logprobs_Ck = np.full((count, top_k), -1.0, np.float32)
        ids_Ck = np.tile(self._ordinary[:top_k], (count, 1))
        return EngineScores(len(prompt), np.full(count, -1.0, np.float32), ids_Ck, logprobs_Ck, False)


@asynccontextmanager
async def start_rated(
    tokens_per_s: float, base: Path, settings: EngineNumbers, media: MediaNumbers
) -> AsyncGenerator[RatedEngine]:
    yield RatedEngine(base, settings, tokens_per_s)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--speed", type=float, required=True)
    all_settings.add_arguments(parser)
    arguments = parser.parse_args()
    app.start_engine = partial(start_rated, arguments.rate * arguments.speed)  # pyright: ignore
    settings = read(vars(arguments), os.environ, service_numbers(load(arguments.recipe)))
    return asyncio.run(command._serve(settings))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
