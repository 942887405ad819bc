"""A step's rollouts as they are kept, for people to read and for a step to be learnt again without an engine.

    record   what was learnt from, as it travels to the service
    replay   the same again, from a folder of such records: `--replay runs/ID` of the worker

Equal records give bit-equal revisions, whoever works when. Left out of a record: a teacher's likeliest tokens, so steps
with `teacher_signal = "top-k"` cannot be replayed; and media, which are drawn again.
"""

import asyncio
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapters.errors import UserError
from clients.calls import media_id
from service.schemas import RecordedCompletion, RecordedGroup, RecordedPart, StepRollouts
from trainer.loop import Batch, StepContext, prompts_by_capability, prompts_of
from trainer.parts import Completion, Floats, Prompt, Rollout, loss_term
from trainer.plan.steps import Step


def record(run: str, step: Step, batch: Batch) -> StepRollouts:
    capabilities = {teacher.name: teacher.capability for teacher in step.teachers}
    capabilities |= {f"negative-{capability}": capability for capability in step.negative}
    parts = [
        RecordedPart(
            name=name,
            capability=capabilities.get(name),  # None for the rewards' term: its capabilities are the step's
            groups=[_recorded(rollout) for rollout in rollouts],
        )
        for name, rollouts in batch.rollouts.items()
    ]
    metrics = {name: value for name, value in batch.metrics.items() if np.isfinite(value)}  # JSON has no NaN
    return StepRollouts(run=run, branch=step.branch, step=step.number, parts=parts, metrics=metrics)


async def replay(folder: Path, step: Step, context: StepContext) -> Batch:
    """What `record` kept, with the prompts that the step draws: a worker's `gather`."""
    return await asyncio.to_thread(read_batch, folder, step, context)


def read_batch(folder: Path, step: Step, context: StepContext) -> Batch:
    path = folder / "rollouts" / step.branch / f"{step.number}.json.gz"
    try:
        recorded = StepRollouts.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: no record of {step.makes} ({type(error).__name__}); name the run's folder") from None
    if context.loss.teacher_signal == "top-k" and step.teachers:
        raise UserError('loss.teacher_signal: "top-k" is not in the records; replay with "sampled"')
    rollouts: dict[str, list[Rollout]] = {}
    for part in recorded.parts:
        # Prompts are drawn again, with their media, and compared by id: another recipe or data set would teach the
        # recorded completions of other questions.
        prompts = list(_prompts(step, context, part))
        if [group.prompt_id for group in part.groups] != [prompt.id for prompt in prompts]:
            raise UserError(f"{path}: made of other prompts than this recipe draws; replay with its own recipe")
        rollouts[part.name] = [
            Rollout(
                prompt,
                np.array(group.prompt_token_ids, np.int64),
                tuple(_completion(completion) for completion in group.completions),
            )
            for group, prompt in zip(part.groups, prompts, strict=True)
        ]
    terms = tuple(loss_term(name, rollouts_of_term) for name, rollouts_of_term in rollouts.items())
    return Batch(terms, rollouts, recorded.metrics)


def _prompts(step: Step, context: StepContext, part: RecordedPart) -> Iterator[Prompt]:
    if part.capability is not None:
        yield from prompts_of(step, context, part.capability, part.name, len(part.groups))
        return
    for capability, count in zip(step.capabilities, prompts_by_capability(step, context), strict=True):
        yield from prompts_of(step, context, capability, part.name, count)


def _recorded(rollout: Rollout) -> RecordedGroup:
    prompt = rollout.prompt
    question = [
        "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])
        for message in prompt.messages
    ]
    return RecordedGroup(
        prompt_id=prompt.id,
        question="\n".join(question),
        answer=prompt.answer,
        media=[media_id(data) for data in (*prompt.images, *prompt.videos)],
        prompt_token_ids=rollout.ids_P.tolist(),
        completions=[
            RecordedCompletion(
                text=completion.text,
                token_ids=completion.ids_C.tolist(),
                logprobs=completion.logprobs_C.tolist(),
                reward=completion.reward,
                why=completion.why,
                is_cut_off=completion.is_cut_off,
                advantages=_values(completion.advantages_C),
                delta=_values(completion.delta_C),
            )
            for completion in rollout.completions
        ],
    )


def _completion(recorded: RecordedCompletion) -> Completion:
    return Completion(
        np.array(recorded.token_ids, np.int64),
        np.array(recorded.logprobs, np.float32),
        recorded.text,
        recorded.is_cut_off,
        recorded.reward,
        recorded.why,
        advantages_C=_floats(recorded.advantages),
        delta_C=_floats(recorded.delta),
    )


def _values(row_C: Floats | None) -> list[float] | None:
    return None if row_C is None else row_C.tolist()


def _floats(values: list[float] | None) -> Floats | None:
    return None if values is None else np.array(values, np.float32)
