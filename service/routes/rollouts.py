"""`/runs/{run}/rollouts/{branch}/{step}/...`: a step's rollouts in slices: a table without tokens, a group with them.

A step of long rollouts is a hundred megabytes of JSON; a table of it is some kilobytes.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from numpy.typing import NDArray
from starlette.responses import Response
from tokenizers import Tokenizer

from service import views
from service.files import RunFiles
from service.http.problems import ProblemError
from service.media import Limits, Sampling, Sizing, decode_video, encode_image
from service.rollouts import CompletionNotes, PartHead, Record, unpack_group
from service.routes.adapters import Branch, Revision
from service.routes.history import After, Files
from service.routes.runs import Run

router = APIRouter(tags=["runs"])

_SHOWN = 300
"""Characters of a question or a completion in a table: a line of a wide screen."""
_DIGITS = 5
"""Of a log-probability: what a colour and a tooltip show."""
_FRAMES, _FRAME_PIXELS, _GAP = 8, 160 * 160, 2
"""Frames of a video that are shown, the pixels of each at most, and those between two."""
# Never as a page of its own: a file that claims to be HTML would run in it.
_MEDIA_HEADERS = {"x-content-type-options": "nosniff", "content-security-policy": "sandbox", "cache-control": "private"}
_EARLIER = 50
"""Steps that are searched for the same prompt: each is a file to open."""

Row = Mapping[str, NDArray[Any]]


def record_of(files: RunFiles, run: str, branch: str, step: int) -> Record:
    path = files.runs.rollouts(run, branch, step)
    if not path.exists():
        raise ProblemError("unknown-run", 404, f"{run} has no rollouts of step {step} of {branch}")
    return Record(path)


def _part(record: Record, name: str, group: int) -> PartHead:
    part = next((part for part in record.head.parts if part.name == name), None)
    if part is None or group >= part.num_groups:
        raise ProblemError("not-found", 404, f"step {record.head.step} has no group {group} of that part")
    return part


@router.get("/runs/{run}/rollouts/{branch}/{step}/completions")
async def completions(
    run: Run,
    branch: Branch,
    step: Revision,
    files: Files,
    after: After = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> views.CompletionsResponse:
    """A step's completions in their order, without tokens, from the `after`th on."""

    def read() -> views.CompletionsResponse:
        record = record_of(files, run, branch, step)
        # All of them, though a page is asked for: its last number and the total are known only then.
        rows = [row for part in record.head.parts for n in range(part.num_groups) for row in _rows(record, part, n)]
        return views.CompletionsResponse(
            parts={part.name: part.num_groups for part in record.head.parts},
            metrics=record.head.metrics,
            total=len(rows),
            rows=rows[after : after + limit],
            next=after + limit if after + limit < len(rows) else None,
        )

    return await asyncio.to_thread(read)


def _rows(record: Record, part: PartHead, number: int) -> Iterator[views.CompletionRow]:
    notes, arrays = unpack_group(record.arrays(part.name, number))
    rewards = {completion.reward for completion in notes.completions} - {None}
    for index, (completion, row) in enumerate(zip(notes.completions, arrays, strict=True)):
        yield views.CompletionRow(
            part=part.name,
            capability=part.capability,
            group=number,
            completion=index,
            prompt_id=notes.prompt_id,
            question=notes.question[:_SHOWN],
            text=completion.text[:_SHOWN],
            reward=completion.reward,
            advantage=_mean(row.get("advantages")),
            delta=_mean(row.get("delta")),
            tokens=completion.tokens,
            is_cut_off=completion.is_cut_off,
            why=completion.why,
            is_decided=len(rewards) < 2,
        )


def _mean(numbers_C: NDArray[Any] | None) -> float | None:
    return None if numbers_C is None or not len(numbers_C) else round(float(numbers_C.mean()), _DIGITS)


@router.get("/runs/{run}/rollouts/{branch}/{step}/groups/{part}/{group}")
async def group(
    run: Run, branch: Branch, step: Revision, part: str, group: Revision, files: Files
) -> views.GroupResponse:
    """A prompt with its completions, every token with its text."""

    def read() -> views.GroupResponse:
        record = record_of(files, run, branch, step)
        head = _part(record, part, group)
        arrays = record.arrays(part, group)
        notes, rows = unpack_group(arrays)
        return views.GroupResponse(
            part=part,
            capability=head.capability,
            group=group,
            groups=head.num_groups,
            prompt_id=notes.prompt_id,
            question=notes.question,
            answer=notes.answer,
            media=notes.media,
            prompt_ids=arrays["prompt_ids"].tolist(),
            messages=notes.messages,
            completions=[
                _tokenised(completion, row, files.tokenizer)
                for completion, row in zip(notes.completions, rows, strict=True)
            ],
        )

    return await asyncio.to_thread(read)


def _tokenised(notes: CompletionNotes, row: Row, tokenizer: Tokenizer | None) -> views.TokenisedCompletion:
    ids = row["ids"].tolist()
    return views.TokenisedCompletion(
        text=notes.text,
        reward=notes.reward,
        why=notes.why,
        is_cut_off=notes.is_cut_off,
        token_ids=ids,
        # One by one: half a character is then a replacement character, but each token has its own colour.
        pieces=None if tokenizer is None else tokenizer.decode_batch([[id] for id in ids], skip_special_tokens=False),
        logprobs=_rounded(row.get("logprobs")) or [],
        advantages=_rounded(row.get("advantages")),
        delta=_rounded(row.get("delta")),
    )


def _rounded(numbers_C: NDArray[Any] | None) -> list[float] | None:
    return None if numbers_C is None else np.round(numbers_C.astype(np.float64), _DIGITS).tolist()


@router.get("/runs/{run}/rollouts/{branch}/{step}/prompts/{prompt_id}")
async def earlier(run: Run, branch: Branch, step: Revision, prompt_id: str, files: Files) -> list[views.PromptPlace]:
    """Where the branch had the same prompt in the steps before, the newest first."""

    def read() -> list[views.PromptPlace]:
        # Of the steps that are kept: older rollouts may be gone.
        steps = [number for number in files.runs.recorded_steps(run).get(branch, []) if number < step]
        places: list[views.PromptPlace] = []
        for number in steps[: -_EARLIER - 1 : -1]:
            record = record_of(files, run, branch, number)
            places += [
                views.PromptPlace(step=number, part=part, group=index)
                for part, index in record.head.groups
                if unpack_group(record.arrays(part, index))[0].prompt_id == prompt_id
            ]
        return places

    return await asyncio.to_thread(read)


async def media_of(id: str, files: Files) -> bytes:
    data = await asyncio.to_thread(files.media, id)
    if data is None:
        raise ProblemError("unknown-media", 404, "it is not here, or not any more: the least recently used go")
    return data


Media = Annotated[bytes, Depends(media_of)]


@router.get("/media/{id}", response_class=Response)
async def media(data: Media) -> Response:
    """An image or a video that a prompt has, by the `sha256:HEX` that its rollouts name."""
    return Response(data, media_type="application/octet-stream", headers=_MEDIA_HEADERS)


@router.get("/media/{id}/frames", response_class=Response)
async def frames(data: Media) -> Response:
    """Some frames of a video beside each other, as a PNG. Browsers play few of the codecs that prompts may have."""

    def draw() -> bytes:
        sizing = Sizing(min_pixels=1, max_pixels=_FRAME_PIXELS, factor=1)
        sampling = Sampling(min_frames=_FRAMES, max_frames=_FRAMES)
        frames_THWC = decode_video(data, Limits(), sampling, sizing).frames_THWC
        gap_HWC = np.full((frames_THWC.shape[1], _GAP, 3), 128, np.uint8)
        pieces = [piece_HWC for frame_HWC in frames_THWC for piece_HWC in (gap_HWC, frame_HWC)]
        return encode_image(np.concatenate(pieces[1:], axis=1))

    return Response(await asyncio.to_thread(draw), media_type="image/png", headers=_MEDIA_HEADERS)
