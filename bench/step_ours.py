"""Our side of `coevo bench step`: `python -m bench.step_ours SECTION ROUNDS`. The last line of stdout is JSON."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import trainer.loop
from adapters.base import locate
from adapters.manifest import base_digest
from adapters.names import Ref
from bench import step_lab as lab
from bench.served import served
from clients.client import AsyncClient
from trainer.data.prompts import PromptList
from trainer.loop import StepContext, TrainingSet, train_step
from trainer.parts import Completion, LossTerm, Rollout
from trainer.plan.steps import Step, Teacher
from trainer.recipe.file import load
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.update.learner import Learner
from trainer.update.optim import Optimiser
from trainer.update.policy import load_policy
from trainer.update.update import update

RECIPE = load(Path("miniature"), [f"lora.rank={lab.RANK}", f"lora.alpha={lab.ALPHA}", f"optimiser.lr={lab.LR}"])
SERVICE = ("--max-lora-rank=16", "--max-loras=12", "--max-num-seqs=192")
"""192: a branch with two teachers samples three batches of 64 at once."""
Steps = Callable[[int], Iterator[Step]]
"""The steps of a round, which is counted from 1."""


def measure_update(rounds: int) -> dict[str, Any]:
    warm = _updates(64, rounds + 1)[1:]
    return {"update_270_64": lab.medians(warm), "update_270_128": lab.medians(_updates(128, rounds))}


def measure_memory(_: int) -> dict[str, Any]:
    return {"memory_270_64": _updates(64, 1)[0]}


def measure_memory_16(_: int) -> dict[str, Any]:
    return {"memory_270_64_by_16": _updates(64, 1)[0]}


def _updates(length: int, rounds: int) -> list[lab.Seconds]:
    from transformers import Qwen3VLProcessor

    processor: Any = Qwen3VLProcessor.from_pretrained(locate("miniature"))
    rows = iter(lab.completions(length))
    rollouts: list[Rollout] = []
    for prompt in lab.noise(lab.PROMPTS):
        text = processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * 256)
        completions = tuple(_completion(next(rows), 1.0 if number % 2 else -1.0) for number in range(lab.GROUP))
        rollouts.append(Rollout(prompt, np.array(processor.tokenizer(text)["input_ids"]), completions))
    policy = load_policy(locate("miniature"), dtype="float32")
    policy.adapters.add("a", rank=lab.RANK, alpha=lab.ALPHA, seed=0)
    optimiser = Optimiser(policy.adapters.parameters("a"), lr=lab.LR)
    watch, times = lab.Watch(), list[lab.Seconds]()
    watch.on(optimiser, "step", "optimiser")
    for _ in range(rounds):
        before = lab.forget_peak()
        watch.start()
        with watch.during("update"):
            done = update(policy, "a", optimiser, [LossTerm("native", tuple(rollouts))], loss=RECIPE.loss,
                          budget=RECIPE.budget.tokens_per_micro_batch)  # fmt: skip
        assert done.skipped is None
        times.append(watch.stop() | {"before": before, "peak": lab.peak()})
    return times


def _completion(ids: list[int], advantage: float) -> Completion:
    engine_C, advantages_C = (np.full(len(ids), value, np.float32) for value in (-5, advantage))
    return Completion(np.array(ids), engine_C, advantages_C=advantages_C)


def measure_step(rounds: int) -> dict[str, Any]:
    def steps(number: int) -> Iterator[Step]:
        yield Step("noise", number, capabilities=("noise",))

    with tempfile.TemporaryDirectory() as folder:
        base = lab.endless(Path(folder) / "base")
        data = {
            "noise": TrainingSet(
                PromptList(lab.noise(lab.PROMPTS * (rounds + 1))), Rule("bench.step_lab:checksum_bit"), 60.0
            )
        }
        return _served({"step_270_64": steps}, data, base, lab.LONG, rounds)


def measure_questions(rounds: int) -> dict[str, Any]:
    def alone(name: str, number: int) -> Iterator[Step]:
        yield Step(f"{name}-alone", number, capabilities=(name,))

    data = {name: TrainingSet(PromptList(lab.questions(name, 500)), Rule("exact"), 60.0) for name in lab.BRANCHES}
    cases: dict[str, Steps] = {"step_text": partial(alone, "text"), "step_image": partial(alone, "image"),
                               "copd_step": together}  # fmt: skip
    return _served(cases, data, locate("miniature"), lab.SHORT, rounds)


def together(number: int) -> Iterator[Step]:
    """All three branches; in their first step nobody has anything to teach yet."""
    for name in lab.BRANCHES:
        teachers = [Teacher(Ref(teacher, number - 1), teacher, 1.0) for teacher in lab.BRANCHES if teacher != name]
        yield Step(name, number, capabilities=(name,), teachers=tuple(teachers) if number > 1 else ())


def _served(
    cases: Mapping[str, Steps], data: Mapping[str, TrainingSet], base: Path, most: int, rounds: int
) -> dict[str, Any]:
    length = 352 if most == lab.LONG else RECIPE.rollout.max_model_len
    with RewardPool(num_children=1) as pool, served(f"--base={base}", f"--max-model-len={length}", *SERVICE) as url:
        return asyncio.run(_rounds(url, pool, cases, data, base, most, rounds))


async def _rounds(
    url: str,
    pool: RewardPool,
    cases: Mapping[str, Steps],
    data: Mapping[str, TrainingSet],
    base: Path,
    most: int,
    rounds: int,
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    decode = partial(AutoTokenizer.from_pretrained(base).decode, skip_special_tokens=True)
    learner = Learner(load_policy(base, dtype="float32"), base=base_digest(base), seed=0, lora=RECIPE.lora,
                      loss=RECIPE.loss, optimiser=RECIPE.optimiser,
                      budget=RECIPE.budget.tokens_per_micro_batch)  # fmt: skip
    amounts = RECIPE.rollout.model_copy(update={"max_completion_tokens": most})
    medians: dict[str, Any] = {}
    watch = _watch()
    async with AsyncClient(url, base=base_digest(base)) as client:
        context = StepContext(client, pool, data, decode, 0, amounts, RECIPE.loss)
        for case, steps in cases.items():
            for step in steps(1):
                await client.fork(step.branch, "base")
            times = [await _round(steps(number), context, learner, watch) for number in range(1, 2 + rounds)]
            medians[case] = lab.medians(times[1:])
        if "copd_step" in cases:
            numbers = range(2 + rounds, 2 + 2 * rounds)
            times = [await _round(together(number), context, learner, watch, at_once=True) for number in numbers]
            medians["copd_step_at_once"] = lab.medians(times)
    return medians


def _watch() -> lab.Watch:
    watch = lab.Watch()
    watch.on(AsyncClient, "generate", "generate")
    watch.on(trainer.loop, "judge", "reward")
    watch.on(trainer.loop, "score", "score")
    watch.on(Learner, "prepare", "prepare")
    watch.on(Learner, "learn", "update")
    watch.on(Optimiser, "step", "optimiser")
    watch.on(trainer.loop, "publish", "publish")
    return watch


async def _round(
    steps: Iterator[Step], context: StepContext, learner: Learner, watch: lab.Watch, *, at_once: bool = False
) -> lab.Seconds:
    turn = asyncio.Lock()  # what a worker does as well: rollouts go on while another branch learns
    watch.start()
    if at_once:
        results = await asyncio.gather(*(train_step(step, context, learner, slot=lambda: turn) for step in steps))
    else:
        results = [await train_step(step, context, learner) for step in steps]
    seconds = watch.stop()
    assert not any(result.update.skipped for result in results)
    completions = [completion for result in results for rollouts in result.batch.rollouts.values()
                   for rollout in rollouts for completion in rollout.completions]  # fmt: skip
    decided = [result.batch.metrics["native/decided"] for result in results]
    return seconds | {
        "length": float(np.mean([len(completion.ids_C) for completion in completions])),
        "rollouts": len(completions),
        "decided": float(np.mean(decided)),
    }


SECTIONS = {
    "update": measure_update,
    "memory": measure_memory,
    "memory_16": measure_memory_16,
    "step": measure_step,
    "questions": measure_questions,
}

if __name__ == "__main__":
    print(json.dumps(SECTIONS[sys.argv[1]](int(sys.argv[2]))))
