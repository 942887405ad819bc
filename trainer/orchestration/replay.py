"""A step's rollouts as they are kept, for people to read and for a step to be learnt again without an engine.

    record   what was learnt from, as it travels to the service
    replay   the same again, from a folder of such records: `--replay runs/ID` of the worker

Equal records give bit-equal revisions, whoever works when. Left out of a record: a teacher's likeliest tokens, so steps
with `teacher_signal = "top-k"` cannot be replayed; and media, which are drawn again.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapters.errors import UserError
from clients.calls import media_id
from service.schemas import RecordedCompletion, RecordedGroup, RecordedPart, StepRollouts
from trainer.data.prompts import Prompt
from trainer.loop import NATIVE, Batch, Lesson, StepContext, as_part, prompts_of, shares_of
from trainer.parts import TrainingSample
from trainer.plan.steps import Step
from trainer.rollout.sample import Completion, Rollout


def record(run: str, step: Step, batch: Batch) -> StepRollouts:
    parts = [
        RecordedPart(name=name, capability=_capability(step, name), groups=[_group(lesson) for lesson in lessons])
        for name, lessons in batch.lessons.items()
    ]
    metrics = {name: value for name, value in batch.metrics.items() if np.isfinite(value)}
    return StepRollouts(run=run, branch=step.branch, step=step.number, parts=parts, metrics=metrics)


def replay(folder: Path, step: Step, arena: StepContext) -> Batch:
    """What `record` kept, with the prompts that the step draws."""
    path = folder / "rollouts" / step.branch / f"{step.number}.json.gz"
    try:
        kept = StepRollouts.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: no record of {step.makes} ({type(error).__name__}); name the run's folder") from None
    if arena.loss.teacher_signal == "top-k" and step.teachers:
        raise UserError('loss.teacher_signal: "top-k" is not in the records; replay with "sampled"')
    lessons: dict[str, list[Lesson]] = {}
    for part in kept.parts:
        prompts = list(_asked(step, arena, part))
        for group, prompt in zip(part.groups, prompts, strict=True):
            if group.prompt_id != prompt.id:
                raise UserError(f"{path}: made of other prompts than this recipe draws; replay with its own recipe")
        lessons[part.name] = [_lesson(group, prompt) for group, prompt in zip(part.groups, prompts, strict=True)]
    return Batch(tuple(as_part(name, one) for name, one in lessons.items()), lessons, kept.metrics)


def _capability(step: Step, part: str) -> str | None:
    """None: the step's own, as many as it has."""
    teachers = {teacher.name: teacher.capability for teacher in step.teachers}
    return teachers.get(part) or (None if part == NATIVE else part.removeprefix("negative-"))


def _asked(step: Step, arena: StepContext, part: RecordedPart) -> Iterator[Prompt]:
    if part.capability is not None:
        yield from prompts_of(step, arena, part.capability, part.name, len(part.groups))
        return
    for capability, count in zip(step.capabilities, shares_of(step, arena), strict=True):
        yield from prompts_of(step, arena, capability, part.name, count)


def _group(lesson: Lesson) -> RecordedGroup:
    prompt, deltas = lesson.rollout.prompt, lesson.deltas or (None,) * len(lesson.targets)
    return RecordedGroup(
        prompt_id=prompt.id,
        question="\n".join(_text(prompt)),
        answer=prompt.answer,
        media=[media_id(data) for data in (*prompt.images, *prompt.videos)],
        prompt_token_ids=lesson.rollout.ids_P.tolist(),
        completions=[
            RecordedCompletion(
                text=answer.text,
                token_ids=answer.ids_C.tolist(),
                logprobs=answer.logprobs_C.tolist(),
                reward=answer.reward,
                why=answer.why,
                is_cut_off=answer.is_cut_off,
                advantages=None if target is None else target.advantages_C.tolist(),
                delta=None if delta is None else delta.tolist(),
            )
            for answer, target, delta in zip(lesson.rollout.completions, lesson.targets, deltas, strict=True)
        ],
    )


def _text(prompt: Prompt) -> Iterator[str]:
    for message in prompt.messages:
        yield "".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in message["content"])


def _lesson(group: RecordedGroup, prompt: Prompt) -> Lesson:
    answers = tuple(
        Completion(
            np.array(one.token_ids, np.int64),
            np.array(one.logprobs, np.float32),
            one.text,
            one.is_cut_off,
            one.reward,
            one.why,
        )
        for one in group.completions
    )
    targets = tuple(
        None
        if one.advantages is None
        else TrainingSample(answer.ids_C, np.array(one.advantages, np.float32), answer.logprobs_C)
        for one, answer in zip(group.completions, answers, strict=True)
    )
    return Lesson(Rollout(prompt, np.array(group.prompt_token_ids, np.int64), answers), targets)
