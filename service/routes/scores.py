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
from service.http.bodies import JsonRoute
from service.http.problems import ProblemError
from service.inputs import InputError, completion_ids, prompt_ids
from service.publishing.registry import Served
from service.scoring import Scoring
from service.state import MEDIA_TOKENS, ServiceState, State, adapter_of

router = APIRouter(tags=["scores and samples"], route_class=JsonRoute)

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
async def logprobs(
    body: schemas.LogprobsRequest,
    request: Request,
    state: State,
    adapter: Adapters = ["base"],  # noqa: B006
) -> Response:
    """Log-probabilities of completions under one adapter or several, stamped with the revision that gave them."""
    if body.top_k > state.settings.engine.top_k:
        raise InputError("top_k", f"at most {state.settings.engine.top_k} tokens are told; lower it")
    model_len = state.settings.engine.max_model_len
    cost = tokens_of_scoring(body, len(adapter), media_tokens=MEDIA_TOKENS, max_model_len=model_len)
    async with state.admission.admit(cost), AsyncExitStack() as stack:
        # All before the first is scored, so that none is retired or evicted while it waits for its turn.
        served = [await stack.enter_async_context(state.registry.acquire(name)) for name in adapter]
        sequences = await _sequences(state, body.sequences, body.top_k)
        async with within(state.settings.request_timeout_s):
            scores = await gather_or_cancel(
                state.scorer.score(sequences, adapter_of(model), model.digest, body.top_k) for model in served
            )
    tokens = sum(len(sequence.completion) for sequence in sequences)
    for model in served:
        state.metrics.count_tokens(model.branch, "scored", tokens)
    heads: list[dict[str, Any]] = [
        {"adapter": model.branch, "revision": model.revision, "digest": model.digest} for model in served
    ]
    if schemas.SAFETENSORS in request.headers.get("accept", ""):
        # Straight from arrays: as lists, a group of long completions with its likeliest tokens takes half a gigabyte.
        rows = [
            [wire.ScoredArrays(score.logprobs_C, score.ids_Ck, score.logprobs_Ck) for score in adapter_scores]
            for adapter_scores in scores
        ]
        completions, prompt_tokens = [row.completion for row in sequences], [score.prompt_tokens for score in scores[0]]
        packed = await asyncio.to_thread(wire.pack_scores, heads, completions, prompt_tokens, rows)
        if packed is not None:
            return Response(packed, media_type=schemas.SAFETENSORS)
    adapters = [
        schemas.AdapterScores(
            **head,
            sequences=[
                schemas.ScoredSequence(
                    token_ids=list(sequence.completion),
                    logprobs=score.logprobs_C.tolist(),
                    prompt_tokens=score.prompt_tokens,
                    **_top(score),
                )
                for sequence, score in zip(sequences, adapter_scores, strict=True)
            ],
        )
        for head, adapter_scores in zip(heads, scores, strict=True)
    ]
    return await _answer(request, schemas.LogprobsResponse(adapters=adapters))


async def _sequences(state: ServiceState, bodies: Sequence[schemas.Sequence], top_k: int) -> list[Scoring]:
    """What the engine takes for each, with every check that its tokens need."""
    _check_media(state, bodies)
    sequences: list[Scoring] = []
    # By their names: the completions of a group share their media.
    loaded: dict[tuple[tuple[str, ...], tuple[str, ...]], EngineMedia] = {}
    for number, body in enumerate(bodies):
        await asyncio.sleep(0)  # thousands of long ones take seconds, and others want their turn
        where = f"sequences.{number}"
        names = (tuple(body.images), tuple(body.videos))
        if names not in loaded:
            loaded[names] = await _media(state, body.images, body.videos)
        prompt = prompt_ids(body.prompt, len(body.images), len(body.videos), state.engine, f"{where}.prompt")
        completion = completion_ids(body.completion, state.engine, f"{where}.completion")
        _check_length(state, len(prompt) + len(completion), where)
        token_ids = None
        if body.token_ids is not None:
            token_ids = _fixed_ids(state, body.token_ids, len(completion), top_k, f"{where}.token_ids")
        sequences.append(Scoring(tuple(prompt), tuple(completion), loaded[names], token_ids))
    return sequences


def _fixed_ids(
    state: ServiceState, rows: list[list[int]], completion: int, top_k: int, where: str
) -> tuple[tuple[int, ...], ...]:
    if top_k:  # the answer has a single place for both
        raise InputError(where, "either token_ids or top_k; remove one of them")
    if len(rows) != completion:
        raise InputError(where, f"{len(rows)} rows for a completion of {completion} tokens; give one row each")
    if len({len(row) for row in rows}) > 1 or len(rows[0]) > state.settings.engine.top_k:
        raise InputError(where, f"rows have one length, at most {state.settings.engine.top_k}")
    for row in rows:
        if row and max(row) >= state.engine.vocabulary_size:
            raise InputError(where, f"token id {max(row)} does not exist")
    return tuple(tuple(row) for row in rows)


def _check_media(state: ServiceState, bodies: Sequence[schemas.Prompt] | Sequence[schemas.Sequence]) -> None:
    """For the whole request: a single answer tells all media that must be sent."""
    limits = state.settings.media
    if any(len(body.images) > limits.max_images or len(body.videos) > limits.max_videos for body in bodies):
        raise InputError("images", f"at most {limits.max_images} images and {limits.max_videos} videos")
    state.media.check_known([name for body in bodies for name in (*body.images, *body.videos)])


async def _media(state: ServiceState, images: Sequence[str], videos: Sequence[str]) -> EngineMedia:
    files = [[await asyncio.to_thread(state.media.resolve, name) for name in kind] for kind in (images, videos)]
    return await state.decoder(*files)


def _check_length(state: ServiceState, tokens: int, where: str) -> None:
    """Before media are expanded; the engine counts again after."""
    room = state.settings.engine.max_model_len - 1
    if tokens > room:
        raise InputError(where, f"{tokens} tokens do not fit; the model takes {room} of prompt and completion together")


def _top(rows: EngineScores | Sampled) -> dict[str, Any]:
    if rows.ids_Ck.ndim < 2 or rows.ids_Ck.shape[1] == 0:  # no tokens, or nothing beside them was asked for
        return {}
    return {"top_ids": rows.ids_Ck.tolist(), "top_logprobs": rows.logprobs_Ck.tolist()}


@router.post("/generate", response_model=schemas.GenerateResponse)
async def generate(body: schemas.GenerateRequest, request: Request, state: State, adapter: str = "base") -> Response:
    """Completions of prompts, as tokens, with the log-probability of each."""
    if body.logprobs is not None and body.logprobs > state.settings.engine.top_k:
        raise InputError("logprobs", f"at most {state.settings.engine.top_k} tokens are told; lower it")
    if body.n > 1 and body.temperature == 0:
        raise InputError("n", "completions at temperature 0 are all the same; ask for one, or raise the temperature")
    model_len = state.settings.engine.max_model_len
    cost = tokens_of_generation(body, media_tokens=MEDIA_TOKENS, max_model_len=model_len)
    async with (
        state.admission.admit(cost),
        state.registry.acquire(adapter) as served,
        within(state.settings.request_timeout_s),
    ):
        _check_media(state, body.prompts)
        # The engine batches them; one by one they would take as many times as long.
        prompts = await gather_or_cancel(
            _generated(state, prompt, body, served, f"prompts.{number}") for number, prompt in enumerate(body.prompts)
        )
    read = sum(len(prompt.prompt_token_ids) for prompt in prompts)
    sampled = sum(len(completion.token_ids) for prompt in prompts for completion in prompt.completions)
    state.metrics.count_tokens(served.branch, "prompt", read)
    state.metrics.count_tokens(served.branch, "generated", sampled)
    answer = schemas.GenerateResponse(
        adapter=served.branch, revision=served.revision, digest=served.digest, prompts=prompts
    )
    return await _answer(request, answer)


async def _generated(
    state: ServiceState, prompt: schemas.Prompt, body: schemas.GenerateRequest, served: Served, where: str
) -> schemas.Generated:
    media = await _media(state, prompt.images, prompt.videos)
    ids = prompt_ids(prompt.prompt, len(prompt.images), len(prompt.videos), state.engine, f"{where}.prompt")
    _check_length(state, len(ids), where)
    expanded, completions = await state.engine.generate(
        ids,
        media,
        adapter_of(served),
        n=body.n,
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_tokens,
        top_k=body.logprobs,
        seed=prompt.seed,
        stop=body.stop,
    )
    return schemas.Generated(
        prompt_token_ids=expanded,
        completions=[
            schemas.Completion(
                token_ids=list(completion.token_ids),
                logprobs=completion.logprobs_C.tolist(),
                # Whatever else vLLM says (an abort, say) has no end mark either.
                finish_reason="stop" if completion.finish_reason == "stop" else "length",
                **_top(completion),
            )
            for completion in completions
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
