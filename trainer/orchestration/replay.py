"""A step's rollouts as they are kept, for people to read and for a step to be learnt again without an engine.

    keep_record   what was learnt from, in a file that travels to the service (`service.rollouts`)
    replay        the same again, from a folder of such records: `--replay runs/ID` of the worker

Equal records give bit-equal revisions, whoever works when. Left out of a record: media, which are drawn again.
"""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import UserError
from clients.calls import media_id
from clients.client import AsyncClient
from service.rollouts import (
    PROMPT_IDS,
    CompletionNotes,
    GroupNotes,
    PackedGroup,
    PartHead,
    Record,
    RecordError,
    RecordHead,
    pack_group,
    unpack_group,
    write_record,
)
from service.runs import RECORD, ROLLOUTS
from trainer.loop import Batch, StepContext, prompts_by_capability, prompts_of
from trainer.parts import Completion, Prompt, Rollout, TopK, loss_term
from trainer.plan.steps import Step


async def keep_record(client: AsyncClient, run: str, step: Step, batch: Batch, keep: int | None) -> None:
    """With `keep`, so many steps of the branch stay."""
    # On the disk and not in memory: it is as large again as the batch.
    with tempfile.TemporaryDirectory(prefix="coevo-") as folder:
        path = Path(folder) / f"{step.number}{RECORD}"
        await asyncio.to_thread(write_step, path, run, step, batch)
        await client.put_rollouts(run, step.branch, step.number, path, keep=keep)


def write_step(path: Path, run: str, step: Step, batch: Batch) -> None:
    """Blocks, but holds the interpreter for a prompt's arrays at a time only."""
    capabilities = {teacher.name: teacher.capability for teacher in step.teachers}
    capabilities |= {f"negative-{capability}": capability for capability in step.negative}
    parts = [
        # None for the rewards' term: its capabilities are the step's.
        PartHead(name=name, capability=capabilities.get(name), num_groups=len(rollouts))
        for name, rollouts in batch.rollouts.items()
    ]
    metrics = {name: value for name, value in batch.metrics.items() if np.isfinite(value)}  # JSON has no NaN
    head = RecordHead(run=run, branch=step.branch, step=step.number, metrics=metrics, parts=parts)
    write_record(path, head, lambda part, number: _packed(batch.rollouts[part][number]))


async def replay(folder: Path, step: Step, context: StepContext) -> Batch:
    """What `record` kept, with the prompts that the step draws: a worker's `gather`."""
    return await asyncio.to_thread(read_batch, folder, step, context)


def read_batch(folder: Path, step: Step, context: StepContext) -> Batch:
    path = folder / ROLLOUTS / step.branch / f"{step.number}{RECORD}"
    try:
        record = Record(path)
        rollouts: dict[str, list[Rollout]] = {}
        for part in record.head.parts:
            # Prompts are drawn again, with their media, and compared by id: another recipe or data set would teach the
            # recorded completions of other questions.
            prompts = list(_prompts(step, context, part))
            # All of a part at once, as the batch that it becomes is: nothing is saved by reading it piece by piece.
            groups = [record.arrays(part.name, number) for number in range(part.num_groups)]
            packed = [unpack_group(arrays) for arrays in groups]
            if [group.notes.prompt_id for group in packed] != [prompt.id for prompt in prompts]:
                raise UserError(f"{path}: made of other prompts than this recipe draws; replay with its own recipe")
            rollouts[part.name] = [
                Rollout(prompt, arrays[PROMPT_IDS].astype(np.int64), tuple(_completions(group)))
                for prompt, arrays, group in zip(prompts, groups, packed, strict=True)
            ]
    except (OSError, RecordError) as error:
        reason = str(error) if isinstance(error, RecordError) else type(error).__name__
        raise UserError(f"{path}: no record of {step.makes} ({reason}); name the run's folder") from None
    terms = tuple(loss_term(name, rollouts_of_term) for name, rollouts_of_term in rollouts.items())
    return Batch(terms, rollouts, record.head.metrics)


def _prompts(step: Step, context: StepContext, part: PartHead) -> Iterator[Prompt]:
    if part.capability is not None:
        yield from prompts_of(step, context, part.capability, part.name, part.num_groups)
        return
    for capability, count in zip(step.capabilities, prompts_by_capability(step, context), strict=True):
        yield from prompts_of(step, context, capability, part.name, count)


def _packed(rollout: Rollout) -> dict[str, NDArray[Any]]:
    prompt = rollout.prompt
    question = [
        "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
        for message in prompt.messages
    ]
    # A view of the batch's own arrays, but for ids, which are half as wide in a record.
    rows = [_row(completion) for completion in rollout.completions]
    notes = GroupNotes(
        prompt_id=prompt.id,
        question="\n".join(question),
        answer=prompt.answer,
        media=[media_id(data) for data in (*prompt.images, *prompt.videos)],
        messages=[dict(message) for message in prompt.messages],
        completions=[
            CompletionNotes(
                text=completion.text,
                reward=completion.reward,
                why=completion.why,
                is_cut_off=completion.is_cut_off,
                tokens=len(completion.ids_C),
                arrays=list(row),
                beta=completion.top_k and completion.top_k.beta,
            )
            for completion, row in zip(rollout.completions, rows, strict=True)
        ],
    )
    return pack_group(notes, rollout.ids_P, rows)


def _row(completion: Completion) -> dict[str, NDArray[Any]]:
    """What there is for each token."""
    top = completion.top_k
    row: dict[str, NDArray[Any] | None] = {
        "ids": completion.ids_C,
        # Empty where nobody asked for them, which is not one for each token.
        "logprobs": completion.logprobs_C if len(completion.logprobs_C) else None,
        "advantages": completion.advantages_C,
        "delta": completion.delta_C,
        "top_ids": top and top.ids_Ck,
        "top_logprobs": top and top.logprobs_Ck,
    }
    return {name: array for name, array in row.items() if array is not None}


def _completions(group: PackedGroup) -> Iterator[Completion]:
    for notes, row in zip(group.notes.completions, group.rows, strict=True):
        top = None
        if notes.beta is not None:
            top = TopK(row["top_ids"].astype(np.int64), row["top_logprobs"], notes.beta)
        yield Completion(
            row["ids"].astype(np.int64),
            row.get("logprobs", np.zeros(0, np.float32)),
            notes.text,
            notes.is_cut_off,
            notes.reward,
            notes.why,
            advantages_C=row.get("advantages"),
            delta_C=row.get("delta"),
            top_k=top,
        )
