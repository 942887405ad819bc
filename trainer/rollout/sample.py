"""Prompts answered by a revision, judged by a reward, scored by other revisions: all through the service.

What the service says a prompt's tokens are is what the trainer trains on, so nothing here tokenises. Student and
teacher are scored in one call, so that the difference between them has one source.

Axes: P tokens of a prompt, C tokens of a completion, k a teacher's likeliest tokens, A adapters.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clients.calls import media_id, prompts_together
from clients.client import AsyncClient
from service import schemas
from service.concurrency import gather_or_cancel
from service.tracing import span
from service.wire import ScoredArrays
from trainer.data.prompts import digest
from trainer.parts import Completion, Floats, Ids, Prompt, Rollout
from trainer.rewards import RewardItem, Rule
from trainer.rewards.pool import RewardPool

MAX_CALLS = 128
"""Calls in hand at once, for callers with many. Twice what a client sends, so that the next is ready when one is
answered, and no more: what is asked lies in memory until then."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One adapter's log-probabilities of one completion."""

    logprobs_C: Floats
    top_ids_Ck: Ids
    top_logprobs_Ck: Floats


async def sample(
    client: AsyncClient,
    adapter: str,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_tokens: int,
    seeds: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    temperature: float = 1.0,
    top_p: float = 1.0,
    logprobs: bool = False,
) -> list[Rollout]:
    """`n` completions of each prompt; the seed of a prompt decides all of them."""

    async def answered(share: slice) -> list[Rollout]:
        """The rollouts of prompts that travel in one request. They are small, the answer as it came is large."""
        request = schemas.GenerateRequest(
            prompts=[
                schemas.Prompt(
                    prompt=_chat(prompt), images=_media_ids(prompt.images), videos=_media_ids(prompt.videos), seed=seed
                )
                for prompt, seed in zip(prompts[share], seeds[share], strict=True)
            ],
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            # 0 likeliest tokens beside the sampled one: its own log-probability is all that an update needs.
            logprobs=0 if logprobs else None,
        )
        # The service answers with one set of completions a prompt, whatever number of requests the client makes of it.
        responses = await client.generate(adapter, request, media=_media(prompts[share]))
        generated = [response.prompts[0] for response in responses]
        return await asyncio.to_thread(_rollouts, prompts[share], generated, decode)

    size = prompts_together(n, max_tokens)
    parts = await gather_or_cancel(answered(slice(start, start + size)) for start in range(0, len(prompts), size))
    return [rollout for part in parts for rollout in part]


def _rollouts(
    prompts: Sequence[Prompt], generated: Sequence[schemas.Generated], decode: Callable[[Sequence[int]], str]
) -> list[Rollout]:
    return [
        # The service's tokens: media are expanded there, and a chat template is applied in one place only.
        Rollout(
            prompt,
            np.array(of_prompt.prompt_token_ids, np.int64),
            tuple(
                Completion(
                    np.array(completion.token_ids, np.int64),
                    np.array(completion.logprobs, np.float32),  # the engine's dtype: nothing is lost
                    decode(completion.token_ids),
                    # `stop` means that the model ended by itself; only what ran into the limit is cut off.
                    completion.finish_reason == "length",
                )
                for completion in of_prompt.completions
            ),
        )
        for prompt, of_prompt in zip(prompts, generated, strict=True)
    ]


def judge(rollouts: Sequence[Rollout], pool: RewardPool, rule: Rule, deadline_s: float) -> list[Rollout]:
    """The rollouts with rewards. Blocks."""
    items = [
        RewardItem(completion.text, rollout.prompt.answer) for rollout in rollouts for completion in rollout.completions
    ]
    # One batch under one deadline: a reward that hangs costs the step once, not once a prompt.
    # In the order of the items, so that each verdict goes back to its completion.
    verdicts = iter(pool.score(items, rule, deadline_s))
    judged: list[Rollout] = []
    for rollout in rollouts:
        completions: list[Completion] = []
        for completion in rollout.completions:
            verdict = next(verdicts)
            completions.append(replace(completion, reward=verdict.value, why=verdict.why))
        judged.append(rollout.only(completions))
    return judged


async def score(
    client: AsyncClient, adapters: Sequence[str], rollouts: Sequence[Rollout], *, top_k: int = 0
) -> list[list[list[Scores]]]:
    """[adapter][rollout][completion]: the log-probabilities of every completion under every adapter."""

    async def score_rollout(rollout: Rollout) -> list[list[Scores]]:
        # One request a prompt: its completions share the prompt in the engine's prefix cache. All adapters are in it,
        # so what two of them say differs by their weights and not by how they were batched.
        async with calls:
            by_adapter = await client.scores(adapters, _score_request(rollout, top_k), media=_media([rollout.prompt]))
        return [[_scores(sequence) for sequence in sequences] for sequences in by_adapter]

    # Before their requests are made: those of a whole step would be gigabytes.
    calls = asyncio.Semaphore(MAX_CALLS)
    with span("score", models=", ".join(adapters)):
        scored = await gather_or_cancel(map(score_rollout, rollouts))
    return [[of_rollout[number] for of_rollout in scored] for number in range(len(adapters))]


def _score_request(rollout: Rollout, top_k: int) -> schemas.LogprobsRequest:
    prompt = rollout.prompt
    return schemas.LogprobsRequest(
        sequences=[
            schemas.Sequence(
                prompt=_chat(prompt),
                completion=completion.ids_C.tolist(),
                images=_media_ids(prompt.images),
                videos=_media_ids(prompt.videos),
            )
            for completion in rollout.completions
        ],
        top_k=top_k,
    )


def _scores(sequence: ScoredArrays) -> Scores:
    # Copies: a view would keep the answer of a whole prompt and all models.
    return Scores(sequence.logprobs_C.copy(), sequence.top_ids_Ck.astype(np.int64), sequence.top_logprobs_Ck.copy())


def seeds(count: int, *parts: object) -> list[int]:
    """A seed for each prompt: a function of nothing but `parts`, which name the run's seed, stream and step."""
    # Hashed, so that no two terms, steps or prompts share a stream. 15 hex digits are 60 bits: they fit an int64.
    return [int(digest([*map(str, parts), number])[:15], 16) for number in range(count)]


def _chat(prompt: Prompt) -> schemas.Chat:
    return schemas.Chat.model_validate({"messages": prompt.messages})


def _media_ids(media: Sequence[bytes]) -> list[str]:
    return [media_id(data) for data in media]


def _media(prompts: Sequence[Prompt]) -> dict[str, bytes]:
    """Every picture and clip by its id: the client uploads those that the service does not know yet."""
    # By content, so a picture that many prompts share travels and is decoded once.
    return {media_id(data): data for prompt in prompts for data in (*prompt.images, *prompt.videos)}
