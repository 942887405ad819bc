"""Our side of `coevo bench step`: `python -m bench.step_ours SECTION ROUNDS [CASE]`. Its last line is JSON."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

import trainer.loop
from adapters.base import locate
from adapters.manifest import base_digest
from adapters.names import Ref
from bench import step_lab as lab
from bench.served import served
from clients.client import AsyncClient
from service.chats import for_template
from trainer.data.prompts import PromptList
from trainer.loop import StepContext, TrainingSet, train_step
from trainer.parts import Completion, LossTerm, Prompt, Rollout
from trainer.plan.steps import Step, Teacher
from trainer.recipe import RolloutConfig
from trainer.recipe.file import load
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool
from trainer.update.learner import Learner
from trainer.update.optim import Optimiser
from trainer.update.policy import load_policy
from trainer.update.update import update

GROUPS = f"rollout.opd_group_size={lab.GROUP}"  # as many for a teacher as for the rewards: so many TRL is asked for
RECIPE = load(Path("miniature"), [f"lora.rank={lab.RANK}", f"lora.alpha={lab.ALPHA}", f"optimiser.lr={lab.LR}", GROUPS])
SERVICE = ("--max-lora-rank=16", "--max-loras=12", "--max-num-seqs=192")
"""192: a branch with two teachers samples three batches of 64 at once."""
MINIATURE = locate("miniature")
Steps = Callable[[int], Iterator[Step]]
"""The steps of a round, which is counted from 1."""


def measure_update(rounds: int) -> dict[str, Any]:
    warm = _updates(MINIATURE, _noise(64), rounds + 1)[1:]
    return {"update_270_64": lab.medians(warm), "update_270_128": lab.medians(_updates(MINIATURE, _noise(128), rounds))}


def measure_memory(_: int) -> dict[str, Any]:
    return {"memory_270_64": _updates(MINIATURE, _noise(64), 1)[0]}


def measure_memory_16(_: int) -> dict[str, Any]:
    return {"memory_270_64_by_16": _updates(MINIATURE, _noise(64), 1)[0]}


def _noise(length: int) -> list[Rollout]:
    from transformers import Qwen3VLProcessor

    processor: Any = Qwen3VLProcessor.from_pretrained(MINIATURE)
    rows = iter(lab.completions(length))
    rollouts: list[Rollout] = []
    for prompt in lab.noise(lab.PROMPTS):
        text = processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True, tokenize=False)
        text = text.replace("<|image_pad|>", "<|image_pad|>" * 256)
        rollouts.append(_rollout(prompt, processor.tokenizer(text)["input_ids"], rows))
    return rollouts


def _rollout(prompt: Prompt, ids: list[int], rows: Iterator[list[int]]) -> Rollout:
    """With the group's next completions, half of them better than the rest."""
    completions = tuple(_completion(next(rows), 1.0 if number % 2 else -1.0) for number in range(lab.GROUP))
    return Rollout(prompt, np.array(ids), completions)


def _updates(
    base: Path, rollouts: list[Rollout], rounds: int, modules: Sequence[str] = RECIPE.lora.modules
) -> list[lab.Seconds]:
    policy = load_policy(base, dtype="float32")
    policy.adapters.add("a", rank=lab.RANK, alpha=lab.ALPHA, seed=0, modules=modules)
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
        base = lab.endless(Path(folder) / "base", MINIATURE)
        data = {
            "noise": TrainingSet(
                PromptList(lab.noise(lab.PROMPTS * (rounds + 1))), Rule("bench.step_lab:checksum_bit"), 60.0
            )
        }
        amounts = RECIPE.rollout.model_copy(update={"max_completion_tokens": lab.LONG})
        return _served({"step_270_64": steps}, data, base, amounts, rounds, max_model_len=352)


def measure_questions(rounds: int) -> dict[str, Any]:
    data = {name: TrainingSet(PromptList(lab.questions(name, 500)), Rule("exact"), 60.0) for name in lab.BRANCHES}
    cases: dict[str, Steps] = {"step_text": partial(alone, "text"), "step_image": partial(alone, "image"),
                               "copd_step": together}  # fmt: skip
    return _served(cases, data, MINIATURE, RECIPE.rollout, rounds)


def measure_words_update(rounds: int, case: lab.Case) -> dict[str, Any]:
    base = locate(case.base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = iter(lab.completions(case.tokens, prompts=case.prompts, ids=lab.plain_ids(tokenizer)))
    rollouts = [_rollout(prompt, _prompt_ids(tokenizer, prompt), rows) for prompt in lab.problems(case.prompts)]
    first, *later = _updates(base, rollouts, rounds + 1, case.modules)
    return {"words_update": lab.medians(later), "words_memory": first}


def _prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    chat = for_template(prompt.messages)
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def measure_words_step(rounds: int, case: lab.Case) -> dict[str, Any]:
    return _words({"words_step": partial(alone, lab.BRANCHES[0])}, rounds, case)


def measure_words_copd(rounds: int, case: lab.Case) -> dict[str, Any]:
    return _words({"words_copd_step": together}, rounds, case)


def _words(cases: Mapping[str, Steps], rounds: int, case: lab.Case) -> dict[str, Any]:
    """Each branch has the same questions: who answers them, and who teaches whom, costs the same for all."""
    problems = lab.problems(200)
    data = TrainingSet(PromptList(problems), Rule("bench.step_lab:checksum_bit"), 60.0)
    with tempfile.TemporaryDirectory() as folder:
        base = lab.endless(Path(folder) / "base", locate(case.base))
        tokenizer = AutoTokenizer.from_pretrained(base)
        longest = max(len(_prompt_ids(tokenizer, prompt)) for prompt in problems)
        amounts = RECIPE.rollout.model_copy(
            update={"prompts": case.prompts, "max_prompt_tokens": longest, "max_completion_tokens": case.tokens}
        )
        of_branches = {name: data for name in lab.BRANCHES}  # noqa: C420  # its type would be of these names alone
        length = longest + case.tokens + 1  # vLLM samples one more, even when it only scores
        return _served(cases, of_branches, base, amounts, rounds, max_model_len=length, modules=case.modules)


def alone(name: str, number: int) -> Iterator[Step]:
    yield Step(f"{name}-alone", number, capabilities=(name,))


def together(number: int) -> Iterator[Step]:
    """All three branches; in their first step nobody has anything to teach yet."""
    for name in lab.BRANCHES:
        teachers = [Teacher(Ref(teacher, number - 1), teacher, 1.0) for teacher in lab.BRANCHES if teacher != name]
        yield Step(name, number, capabilities=(name,), teachers=tuple(teachers) if number > 1 else ())


def _served(
    cases: Mapping[str, Steps],
    data: Mapping[str, TrainingSet],
    base: Path,
    amounts: RolloutConfig,
    rounds: int,
    max_model_len: int = RECIPE.rollout.max_model_len,
    modules: tuple[str, ...] = RECIPE.lora.modules,
) -> dict[str, Any]:
    flags = (f"--base={base}", f"--max-model-len={max_model_len}", *SERVICE)
    with RewardPool(num_children=1) as pool, served(*flags) as url:
        return asyncio.run(_rounds(url, pool, cases, data, base, amounts, rounds, modules))


async def _rounds(
    url: str,
    pool: RewardPool,
    cases: Mapping[str, Steps],
    data: Mapping[str, TrainingSet],
    base: Path,
    amounts: RolloutConfig,
    rounds: int,
    modules: tuple[str, ...],
) -> dict[str, Any]:
    decode = partial(AutoTokenizer.from_pretrained(base).decode, skip_special_tokens=True)
    lora = RECIPE.lora.model_copy(update={"modules": modules})
    learner = Learner(load_policy(base, dtype="float32"), base=base_digest(base), seed=0, lora=lora,
                      loss=RECIPE.loss, optimiser=RECIPE.optimiser,
                      budget=RECIPE.budget.tokens_per_micro_batch)  # fmt: skip
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
WORDS: dict[str, Callable[[int, lab.Case], dict[str, Any]]] = {
    "words_update": measure_words_update,
    "words_step": measure_words_step,
    "words_copd": measure_words_copd,
}

if __name__ == "__main__":
    section, count, *described = sys.argv[1:]
    if described:
        print(json.dumps(WORDS[section](int(count), lab.Case.read(described[0]))))
    else:
        print(json.dumps(SECTIONS[section](int(count))))
