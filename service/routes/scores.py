"""`POST /logprobs` and `POST /generate`: what the method asks of its models."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service import schemas, wire
from service.concurrency import gather_or_cancel
from service.engine.vllm import EngineMedia, EngineScores, Sampled
from service.http.admission import tokens_of_generation, tokens_of_scoring
from service.http.problems import ProblemError
from service.inputs import InputError, completion_ids, prompt_ids
from service.publishing.registry import Served
from service.scoring import Scoring
from service.state import MEDIA_TOKENS, ServiceState, adapter_of

router = APIRouter(tags=["scores and samples"])

Adapters = Annotated[
    list[str],
    Query(
        alias="adapter",
        min_length=1,
        max_length=64,
        description="`base`, a branch (its head), or `branch@revision`; may repeat",
    ),
]


@router.post("/logprobs", response_model=schemas.LogprobsResponse)
async def logprobs(body: schemas.LogprobsRequest, request: Request, adapter: Adapters = ["base"]) -> Response:  # noqa: B006
    """Log-probabilities of completions under one adapter or several, stamped with the revision that gave them."""
    door: ServiceState = request.app.state.door
    if body.top_k > door.settings.engine.top_k:
        raise InputError("top_k", f"at most {door.settings.engine.top_k} tokens are told; lower it")
    model_len = door.settings.engine.max_model_len
    cost = tokens_of_scoring(body, len(adapter), media_tokens=MEDIA_TOKENS, max_model_len=model_len)
    async with door.admission.admit(cost), AsyncExitStack() as stack:
        served = [await stack.enter_async_context(door.registry.acquire(name)) for name in adapter]
        sequences = await _sequences(door, body.sequences, body.top_k)
        async with within(door.settings.request_timeout_s):
            found = await gather_or_cancel(
                door.scorer.score(sequences, adapter_of(one), one.digest, body.top_k) for one in served
            )
    scores = [_adapter_scores(one, sequences, rows) for one, rows in zip(served, found, strict=True)]
    for one in served:
        door.metrics.count_tokens(one.branch, "scored", sum(len(sequence.completion) for sequence in sequences))
    return await _answer(request, schemas.LogprobsResponse(adapters=scores))


async def _sequences(door: ServiceState, asked: Sequence[schemas.Sequence], top_k: int) -> list[Scoring]:
    _check_media(door, asked)
    found: list[Scoring] = []
    loaded: dict[
        tuple[tuple[str, ...], tuple[str, ...]], EngineMedia
    ] = {}  # the completions of a group share their media
    for number, one in enumerate(asked):
        where = f"sequences.{number}"
        names = (tuple(one.images), tuple(one.videos))
        if names not in loaded:
            loaded[names] = await _media(door, one.images, one.videos)
        media = loaded[names]
        prompt = prompt_ids(one.prompt, len(one.images), len(one.videos), door.vocabulary, f"{where}.prompt")
        completion = completion_ids(one.completion, door.vocabulary, f"{where}.completion")
        _check_length(door, len(prompt) + len(completion), where)
        fixed = None
        if one.token_ids is not None:
            fixed = _fixed_ids(door, one.token_ids, len(completion), top_k, f"{where}.token_ids")
        found.append(Scoring(tuple(prompt), tuple(completion), media, fixed))
    return found


def _fixed_ids(
    door: ServiceState, rows: list[list[int]], completion: int, top_k: int, where: str
) -> tuple[tuple[int, ...], ...]:
    if top_k:
        raise InputError(where, "either token_ids or top_k; remove one of them")
    if len(rows) != completion:
        raise InputError(where, f"{len(rows)} rows for a completion of {completion} tokens; give one row each")
    if len({len(row) for row in rows}) > 1 or len(rows[0]) > door.settings.engine.top_k:
        raise InputError(where, f"rows have one length, at most {door.settings.engine.top_k}")
    for row in rows:
        if row and max(row) >= door.vocabulary.size:
            raise InputError(where, f"token id {max(row)} does not exist")
    return tuple(tuple(row) for row in rows)


def _check_media(door: ServiceState, asked: Sequence[schemas.Prompt] | Sequence[schemas.Sequence]) -> None:
    """Of the whole request: one answer tells all media that must be sent."""
    limits = door.engine.settings
    if any(len(one.images) > limits.max_images or len(one.videos) > limits.max_videos for one in asked):
        raise InputError("images", f"at most {limits.max_images} images and {limits.max_videos} videos")
    door.media.check_known([name for one in asked for name in (*one.images, *one.videos)])


async def _media(door: ServiceState, images: Sequence[str], videos: Sequence[str]) -> EngineMedia:
    loaded = [[await asyncio.to_thread(door.media.resolve, one) for one in kind] for kind in (images, videos)]
    return await door.decoder(*loaded)


def _check_length(door: ServiceState, tokens: int, where: str) -> None:
    """Before media are expanded; the engine counts again after."""
    room = door.settings.engine.max_model_len - 1
    if tokens > room:
        raise InputError(where, f"{tokens} tokens do not fit; the model takes {room} of prompt and completion together")


def _adapter_scores(
    served: Served, sequences: Sequence[Scoring], scores: Sequence[EngineScores]
) -> schemas.AdapterScores:
    return schemas.AdapterScores(
        adapter=served.branch,
        revision=served.revision,
        digest=served.digest,
        sequences=[
            schemas.ScoredSequence(
                token_ids=list(sequence.completion),
                logprobs=score.logprobs_C.tolist(),
                prompt_tokens=score.prompt_tokens,
                **_top(score),
            )
            for sequence, score in zip(sequences, scores, strict=True)
        ],
    )


def _top(rows: EngineScores | Sampled) -> dict[str, Any]:
    if rows.ids_Ck.ndim < 2 or rows.ids_Ck.shape[1] == 0:
        return {}
    return {"top_ids": rows.ids_Ck.tolist(), "top_logprobs": rows.logprobs_Ck.tolist()}


@router.post("/generate", response_model=schemas.GenerateResponse)
async def generate(body: schemas.GenerateRequest, request: Request, adapter: str = "base") -> Response:
    """Completions of prompts, as tokens, with the log-probability of each."""
    door: ServiceState = request.app.state.door
    if body.logprobs is not None and body.logprobs > door.settings.engine.top_k:
        raise InputError("logprobs", f"at most {door.settings.engine.top_k} tokens are told; lower it")
    model_len = door.settings.engine.max_model_len
    cost = tokens_of_generation(body, media_tokens=MEDIA_TOKENS, max_model_len=model_len)
    async with (
        door.admission.admit(cost),
        door.registry.acquire(adapter) as served,
        within(door.settings.request_timeout_s),
    ):
        _check_media(door, body.prompts)
        prompts = await gather_or_cancel(
            _generate_one(door, one, body, served, f"prompts.{number}") for number, one in enumerate(body.prompts)
        )
    door.metrics.count_tokens(served.branch, "prompt", sum(len(one.prompt_token_ids) for one in prompts))
    generated = sum(len(completion.token_ids) for one in prompts for completion in one.completions)
    door.metrics.count_tokens(served.branch, "generated", generated)
    answer = schemas.GenerateResponse(
        adapter=served.branch, revision=served.revision, digest=served.digest, prompts=prompts
    )
    return await _answer(request, answer)


async def _generate_one(
    door: ServiceState, asked: schemas.Prompt, body: schemas.GenerateRequest, served: Served, where: str
) -> schemas.Generated:
    media = await _media(door, asked.images, asked.videos)
    prompt = prompt_ids(asked.prompt, len(asked.images), len(asked.videos), door.vocabulary, f"{where}.prompt")
    _check_length(door, len(prompt), where)
    expanded, completions = await door.engine.generate(
        prompt,
        media,
        adapter_of(served),
        n=body.n,
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_tokens,
        top_k=body.logprobs,
        seed=asked.seed,
        stop=body.stop,
    )
    return schemas.Generated(
        prompt_token_ids=expanded,
        completions=[
            schemas.Completion(
                token_ids=list(one.token_ids),
                logprobs=one.logprobs_C.tolist(),
                finish_reason="stop" if one.finish_reason == "stop" else "length",
                **_top(one),
            )
            for one in completions
        ],
    )


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """The time that the engine has for a request."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ProblemError("too-slow", 504, f"the engine did not end the request within {seconds:g} s") from None


async def _answer(request: Request, answer: schemas.LogprobsResponse | schemas.GenerateResponse) -> Response:
    """Encoded in a thread: many numbers take longer than the event loop may be held."""
    if schemas.SAFETENSORS not in request.headers.get("accept", ""):
        text = await asyncio.to_thread(answer.model_dump_json, exclude_none=True)
        return Response(text, media_type="application/json")
    encode: Any = wire.encode_logprobs if isinstance(answer, schemas.LogprobsResponse) else wire.encode_generated
    return Response(await asyncio.to_thread(encode, answer), media_type=schemas.SAFETENSORS)
