"""Prompts answered by a revision, judged by a reward, scored by other revisions: all through the service.

What the service says a prompt's tokens are is what the trainer trains on. Student and teacher are scored in one call,
so that the difference between them has one source.

Left out: what a reward or a score is worth (`advantages`).

Axes: P tokens of a prompt, C tokens of a completion, k a teacher's likeliest tokens, A adapters.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clients.calls import media_id
from clients.client import AsyncClient
from service import schemas
from trainer.data.prompts import Prompt, digest
from trainer.parts import Floats, Ids
from trainer.rewards import RewardItem, Rule, Scored
from trainer.rewards.pool import RewardPool

MAX_CALLS = 128
"""Calls in hand at once, for who has many. Twice what a client sends, so that the next is ready when one is
answered, and no more: the deadline of a request runs from when it is handed to the client."""


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One completion and what was made of it."""

    ids_C: Ids
    logprobs_C: Floats
    """Of the revision that gave it, as it gave it; empty where they were not asked for."""
    text: str
    is_cut_off: bool
    reward: float | None = None
    """None: nobody has judged it."""
    why: str | None = None
    """Why it could not be judged."""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """A prompt and its completions."""

    prompt: Prompt
    ids_P: Ids
    """Expanded."""
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One adapter's log-probabilities of one answer."""

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
    request = schemas.GenerateRequest(
        prompts=[
            schemas.Prompt(prompt=_chat(one), images=_ids(one.images), videos=_ids(one.videos), seed=seed)
            for one, seed in zip(prompts, seeds, strict=True)
        ],
        n=n,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        logprobs=0 if logprobs else None,
    )
    answers = await client.generate(adapter, request, media=_media(prompts))
    return [_rollout(prompt, found, decode) for prompt, found in zip(prompts, answers, strict=True)]


def judge(rollouts: Sequence[Rollout], pool: RewardPool, rule: Rule, deadline_s: float) -> list[Rollout]:
    """The rollouts with rewards. Blocks."""
    items = [RewardItem(answer.text, rollout.prompt.answer) for rollout in rollouts for answer in rollout.completions]
    scored = iter(pool.score(items, rule, deadline_s))
    return [
        replace(rollout, completions=tuple(_judged(answer, next(scored)) for answer in rollout.completions))
        for rollout in rollouts
    ]


async def score(
    client: AsyncClient, adapters: Sequence[str], rollouts: Sequence[Rollout], *, top_k: int = 0
) -> list[list[list[Scores]]]:
    """[adapter][rollout][answer]; one request a prompt, all adapters in it."""
    answers = await asyncio.gather(
        *(
            client.logprobs(adapters, _scoring(rollout, top_k), media=_media([rollout.prompt]))
            for rollout in rollouts
        )
    )  # fmt: skip
    return [
        [[_scores(sequence) for sequence in answer.adapters[number].sequences] for answer in answers]
        for number in range(len(adapters))
    ]


def seeds(count: int, *parts: object) -> list[int]:
    """A seed for each prompt, far apart from each other: a function of nothing but `parts`."""
    return [int(digest([*map(str, parts), number])[:15], 16) for number in range(count)]


def _scoring(rollout: Rollout, top_k: int) -> schemas.LogprobsRequest:
    prompt = rollout.prompt
    return schemas.LogprobsRequest(
        sequences=[
            schemas.Sequence(
                prompt=_chat(prompt),
                completion=answer.ids_C.tolist(),
                images=_ids(prompt.images),
                videos=_ids(prompt.videos),
            )
            for answer in rollout.completions
        ],
        top_k=top_k,
    )


def _rollout(prompt: Prompt, found: schemas.GenerateResponse, decode: Callable[[Sequence[int]], str]) -> Rollout:
    (generated,) = found.prompts
    answers = tuple(
        Completion(
            np.array(one.token_ids, np.int64),
            np.array(one.logprobs, np.float32),
            decode(one.token_ids),
            one.finish_reason == "length",
        )
        for one in generated.completions
    )
    return Rollout(prompt, np.array(generated.prompt_token_ids, np.int64), answers)


def _judged(answer: Completion, scored: Scored) -> Completion:
    return replace(answer, reward=scored.value, why=scored.why)


def _scores(sequence: schemas.ScoredSequence) -> Scores:
    length = len(sequence.token_ids)
    top_ids, top_logprobs = sequence.top_ids or [[]] * length, sequence.top_logprobs or [[]] * length
    return Scores(
        np.array(sequence.logprobs, np.float32), np.array(top_ids, np.int64), np.array(top_logprobs, np.float32)
    )


def _chat(prompt: Prompt) -> schemas.Chat:
    return schemas.Chat.model_validate({"messages": prompt.messages})


def _ids(media: Sequence[bytes]) -> list[str]:
    return [media_id(data) for data in media]


def _media(prompts: Sequence[Prompt]) -> dict[str, bytes]:
    return {media_id(data): data for prompt in prompts for data in (*prompt.images, *prompt.videos)}
