"""A step's record: what is read from it is what was learnt from, bit by bit; and what is not kept is told."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from adapters.errors import UserError
from adapters.names import Ref
from clients.client import AsyncClient
from service.rollouts import Record, unpack_group
from service.schemas import Chat
from tests.trainer.orchestration.test_scheduler import enqueue, kinds, run_of
from tests.trainer.test_loop import context
from trainer.loop import Batch, StepContext, StepResult, prompts_of
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.replay import read_batch, write_step
from trainer.orchestration.scheduler import StepScheduler
from trainer.parts import Completion, Prompt, Rollout, TopK, loss_term
from trainer.plan.steps import Step, Teacher
from trainer.queue.client import Lease, Queue
from trainer.update.update import Update

STEP = Step("text", 3, ("text",), (Teacher(Ref("image", 2), "text", 0.5),))
CONTEXT = context(text=40, count=5)


def rollout(prompt: Prompt, chance: np.random.Generator, *, taught: bool) -> Rollout:
    completions: list[Completion] = []
    for number in range(3):
        tokens = int(chance.integers(1, 9))
        numbers = lambda *shape: chance.normal(size=shape).astype(np.float32)  # noqa: E731
        top = TopK(chance.integers(0, 2**17, (tokens, 4)), numbers(tokens, 4), 0.5) if taught else None
        left = number == 2 and not taught
        completions.append(
            Completion(
                chance.integers(0, 2**17, tokens),
                numbers(tokens),
                f"Straße {number}\n",
                is_cut_off=number == 1,
                reward=None if left else 0.1,
                why="it hung" if left else None,
                advantages_C=None if left else numbers(tokens),
                delta_C=numbers(tokens) if taught else None,
                top_k=top,
            )
        )
    return Rollout(prompt, chance.integers(0, 2**17, 7), tuple(completions))


def batch() -> Batch:
    chance = np.random.default_rng(0)
    name = STEP.teachers[0].name
    rollouts = {
        part: [rollout(prompt, chance, taught=part == name) for prompt in prompts_of(STEP, CONTEXT, "text", part, 5)]
        for part in ("native", name)
    }
    terms = tuple(loss_term(part, of_part) for part, of_part in rollouts.items())
    return Batch(terms, rollouts, {"native/reward": 0.1, "native/gap": float("nan")})


def written(folder: Path) -> Path:
    path = folder / "rollouts/text/3.safetensors"
    path.parent.mkdir(parents=True)
    write_step(path, "run", STEP, batch())
    return path


def flat(value: Any) -> Any:
    """Comparable: arrays as their type and bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return [flat(item) for item in value]
    if isinstance(value, Rollout | Completion | TopK):
        return [flat(getattr(value, name)) for name in value.__slots__]
    return value


def test_what_is_read_is_what_was_learnt_from_bit_by_bit(tmp_path: Path) -> None:
    written(tmp_path)
    first, again = batch(), read_batch(tmp_path, STEP, CONTEXT)
    assert {name: flat(of_part) for name, of_part in again.rollouts.items()} == {
        name: flat(of_part) for name, of_part in first.rollouts.items()
    }
    assert [flat(term.rollouts) for term in again.terms] == [flat(term.rollouts) for term in first.terms]
    assert again.metrics == {"native/reward": 0.1}


def test_a_record_has_prompts_as_other_adapters_are_asked(tmp_path: Path) -> None:
    notes = unpack_group(Record(written(tmp_path)).arrays("native", 0)).notes
    assert notes.messages == list(batch().rollouts["native"][0].prompt.messages)
    assert Chat.model_validate({"messages": notes.messages})


def test_the_same_batch_is_the_same_file(tmp_path: Path) -> None:
    assert written(tmp_path / "a").read_bytes() == written(tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: path.unlink(), "no record of text@3 .FileNotFoundError."),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "no record of text@3"),
        (lambda path: path.write_bytes(b"x" * 100), "no record of text@3 .its header says"),
    ],
)
def test_a_record_that_is_none_is_one_line(tmp_path: Path, change: Any, says: str) -> None:
    change(written(tmp_path))
    with pytest.raises(UserError, match=says):
        read_batch(tmp_path, STEP, CONTEXT)


@pytest.mark.parametrize("wrong_step", [replace(STEP, seed=9), replace(STEP, capabilities=())])
def test_a_record_of_other_prompts_is_refused(tmp_path: Path, wrong_step: Step) -> None:
    written(tmp_path)
    with pytest.raises(UserError, match="made of other prompts than this recipe draws"):
        read_batch(tmp_path, wrong_step, CONTEXT)


def test_a_record_that_is_not_kept_is_an_event_of_the_run(queue: Queue) -> None:
    run = run_of()
    enqueue(queue, run)
    lease = queue.claim("text", "worker")
    assert isinstance(lease, Lease)
    manifest = cast(Any, SimpleNamespace(token=lease.token))
    update = Update({}, skipped=None, budget=64)

    async def report() -> bool:
        # Nobody listens there.
        async with AsyncClient("http://127.0.0.1:1", timeout_s=0.1) as client:
            scheduler = StepScheduler(
                run, ["text"], name="worker", queue=queue, heartbeat=Heartbeat(queue, "worker"),
                watchdog=cast(Any, SimpleNamespace(rest=lambda branch: None)),
                context=replace(cast(StepContext, CONTEXT), client=client), learner=cast(Any, None),
            )  # fmt: skip
            return await scheduler._report(STEP, lease, StepResult(manifest, batch(), update), {"publish": 0.0})

    assert asyncio.run(report())
    ((event),) = kinds(queue, "rollouts")
    assert (event["branch"], event["step"]) == ("text", 3)
    assert "not kept: http://127.0.0.1:1: no answer within" in event["error"]
    assert len(kinds(queue, "step")) == 1
