"""TRL's side of `coevo bench step`: `python -m bench.step_trl SECTION ROUNDS [CASE]`. The last line of stdout is JSON.

A GRPOTrainer as a user has it, in one batch, without recomputation: `train` runs it, a callback takes the times.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    TrainerCallback,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from adapters.architectures import read_architecture
from adapters.base import locate
from adapters.validate import TARGETS
from bench import step_lab as lab
from service.media import Limits, decode_image
from trainer.parts import Prompt
from trainer.rewards import exact_reward

MINIATURE = lab.Case("miniature", lab.PROMPTS, lab.LONG, tuple(TARGETS))
COPD_BATCHES = len(lab.BRANCHES) ** 2
"""Of a round: for each branch its own questions and those of both others."""
Reward = Callable[[str, str], float]
Change = Callable[[Any, "Times"], None]
"""Of a trainer, before it is timed."""


def lora(modules: Collection[str] = TARGETS) -> LoraConfig:
    """On the language model's layers alone, which a vision tower has not."""
    pattern = rf"(?!.*visual).*\.({'|'.join(sorted(modules))})"
    return LoraConfig(r=lab.RANK, lora_alpha=lab.ALPHA, target_modules=pattern)


class Times(TrainerCallback):
    """What `watch` saw of each step, its update from the first `_compute_loss` to its end, and its memory."""

    def __init__(self) -> None:
        self.watch, self.steps = lab.Watch(), list[lab.Seconds]()
        self._figures: lab.Seconds = {}
        """What else is known of the step that runs."""
        self._update: float | None = None
        self._optimiser = 0.0

    def attach(self, trainer: Any) -> None:
        compute, generate = trainer._compute_loss, trainer._generate_single_turn

        def compute_loss(*arguments: Any) -> Any:
            if self._update is None:
                self._figures["before"] = lab.forget_peak()
                self._update = time.perf_counter()
            return compute(*arguments)

        def generate_single_turn(*arguments: Any) -> Any:
            with self.watch.during("generate"):
                ids, logprobs = generate(*arguments)
            self._figures |= {"length": float(np.mean([len(completion) for completion in ids])), "rollouts": len(ids)}
            return ids, logprobs

        trainer._compute_loss, trainer._generate_single_turn = compute_loss, generate_single_turn
        self.watch.on(trainer, "_calculate_rewards", "reward")
        trainer.add_callback(self)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.watch.start()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._optimiser = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self._update is not None
        self.watch.add("optimiser", self._optimiser)
        self.watch.add("update", self._update)
        self.steps.append(self.watch.stop() | self._figures | {"peak": lab.peak()})
        self._update = None


def make(
    base: Path, rows: Sequence[dict[str, Any]], most: int, reward: Reward, batch: int, folder: str, case: lab.Case
) -> Any:
    """For as many steps as `rows` have prompts for, in their order; `batch` completions are computed at once."""

    def rewards(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
        return [reward(completion[0]["content"], right) for completion, right in zip(completions, answer, strict=True)]

    model_class, reader = (AutoModelForCausalLM, AutoTokenizer)
    if read_architecture(base).has_vision:
        model_class, reader = (Qwen3VLForConditionalGeneration, Qwen3VLProcessor)
    trainer: Any = GRPOTrainer(
        model_class.from_pretrained(base, dtype=torch.float32),
        rewards,
        GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=case.prompts * lab.GROUP // batch,
            num_generations=lab.GROUP,
            max_steps=len(rows) // case.prompts,
            max_completion_length=most,
            learning_rate=lab.LR,
            lr_scheduler_type="constant",
            beta=0.0,
            loss_type="grpo",
            epsilon_high=0.28,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": ""}]),
        processing_class=reader.from_pretrained(base, padding_side="left"),
        peft_config=lora(case.modules),
    )
    trainer.train_dataset = list(rows)  # with pictures as they are: a data set would encode and decode them
    return trainer


def row(prompt: Prompt) -> dict[str, Any]:
    (text,) = (part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text")
    columns: dict[str, Any] = {"prompt": [{"role": "user", "content": text}], "answer": prompt.answer}
    return columns | ({"image": decode_image(prompt.images[0], Limits())} if prompt.images else {})


def run(
    base: Path,
    prompts: Sequence[Prompt],
    most: int,
    reward: Reward,
    change: Change | None = None,
    batch: int | None = None,
    case: lab.Case = MINIATURE,
) -> list[lab.Seconds]:
    """Trains, on all completions of a step at once or `batch` of them. What each step took."""
    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(prompt) for prompt in prompts]
        trainer = make(base, rows, most, reward, batch or case.prompts * lab.GROUP, folder, case)
        if change is not None:
            change(trainer, times)
        times.attach(trainer)
        trainer.train()
    return times.steps


def measure_update(rounds: int) -> dict[str, Any]:
    warm = _updates(64, rounds + 1)[1:]
    return {"update_270_64": lab.medians(warm), "update_270_128": lab.medians(_updates(128, rounds))}


def measure_memory(_: int) -> dict[str, Any]:
    return {"memory_270_64": _updates(64, 1)[0]}


def measure_memory_16(_: int) -> dict[str, Any]:
    return {"memory_270_64_by_16": _updates(64, 1, batch=16)[0]}


def _updates(length: int, rounds: int, batch: int | None = None) -> list[lab.Seconds]:
    prompts, given = lab.noise(lab.PROMPTS) * rounds, lab.completions(length)
    return _given(run(locate("miniature"), prompts, length, lab.checksum_bit, _give(given), batch))


def _give(completions: list[list[int]]) -> Change:
    def generate(*_: Any) -> tuple[list[list[int]], None]:
        return completions, None

    def change(trainer: Any, _: Times) -> None:
        trainer._generate_single_turn = generate

    return change


def _given(steps: Sequence[lab.Seconds]) -> list[lab.Seconds]:
    """Steps whose completions are given: their `whole` is the update."""
    return [step | {"whole": step["update"]} for step in steps]


def measure_step(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base = lab.endless(Path(folder) / "base", locate("miniature"))
        return {
            "step_270_64": lab.medians(run(base, lab.noise(lab.PROMPTS * (rounds + 1)), lab.LONG, lab.checksum_bit)[1:])
        }


def measure_questions(rounds: int) -> dict[str, Any]:
    medians: dict[str, Any] = {}
    for name in ("text", "image"):
        steps = run(locate("miniature"), lab.questions(name, lab.PROMPTS * (rounds + 1)), lab.SHORT, exact_reward)
        medians[f"step_{name}"] = lab.medians(steps[1:])
    batches = _copd_batches(rounds)
    flat = [prompt for batch in batches for prompt in batch]
    steps = run(locate("miniature"), flat, lab.SHORT, exact_reward, _score_cross_batches(MINIATURE))
    return medians | dict.fromkeys(("copd_step", "copd_step_at_once"), lab.medians(_copd_rounds(steps)))


def measure_words_update(rounds: int, case: lab.Case) -> dict[str, Any]:
    base = locate(case.base)
    ids = lab.plain_ids(AutoTokenizer.from_pretrained(base))
    given = lab.completions(case.tokens, prompts=case.prompts, ids=ids)
    prompts = lab.problems(case.prompts) * (rounds + 1)
    first, *later = _given(run(base, prompts, case.tokens, lab.checksum_bit, _give(given), case=case))
    return {"words_update": lab.medians(later), "words_memory": first}


def measure_words_step(rounds: int, case: lab.Case) -> dict[str, Any]:
    return {"words_step": lab.medians(_words(rounds + 1, case)[1:])}


def measure_words_copd(rounds: int, case: lab.Case) -> dict[str, Any]:
    steps = _words(rounds * COPD_BATCHES, case, _score_cross_batches(case))
    return {"words_copd_step": lab.medians(_copd_rounds(steps))}


def _words(count: int, case: lab.Case, change: Change | None = None) -> list[lab.Seconds]:
    with tempfile.TemporaryDirectory() as folder:
        base = lab.endless(Path(folder) / "base", locate(case.base))
        return run(base, lab.problems(case.prompts * count), case.tokens, lab.checksum_bit, change, case=case)


def _copd_rounds(steps: Sequence[lab.Seconds]) -> list[lab.Seconds]:
    return [_total(steps[start : start + COPD_BATCHES]) for start in range(0, len(steps), COPD_BATCHES)]


def _copd_batches(rounds: int) -> list[Sequence[Prompt]]:
    """For each round and branch its own questions, then those of both others."""
    capabilities = [name.replace("video", "image") for name in lab.BRANCHES]
    order = [
        capabilities[(branch + shift) % len(capabilities)]
        for branch in range(len(capabilities))
        for shift in range(len(capabilities))
    ]
    streams = {name: iter(lab.questions(name, lab.PROMPTS * len(order) * rounds)) for name in set(capabilities)}
    return [[next(streams[name]) for _ in range(lab.PROMPTS)] for _ in range(rounds) for name in order]


def _score_cross_batches(case: lab.Case) -> Change:
    """Two batches of three are scored by teacher and student as TRL computes log-probabilities."""

    def change(trainer: Any, times: Times) -> None:
        model: Any = trainer.model
        model.add_adapter("teacher", lora(case.modules))
        model.set_adapter("default")
        make_batch = trainer._generate_and_score_completions

        def scored(rows: list[dict[str, Any]]) -> dict[str, Any]:
            batch = make_batch(rows)
            if len(times.steps) % len(lab.BRANCHES):
                with times.watch.during("score"):
                    for adapter in ("teacher", "default"):
                        model.set_adapter(adapter)
                        _logprobs(trainer, batch)
            return batch

        trainer._generate_and_score_completions = scored

    return change


@torch.no_grad()
def _logprobs(trainer: Any, batch: dict[str, Any]) -> None:
    media = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].shape[1],
        **{name: batch[name] for name in media if name in batch},
    )


def _total(steps: Sequence[lab.Seconds]) -> lab.Seconds:
    names = {name for step in steps for name in step}
    sums = {name: sum(step.get(name, 0.0) for step in steps) for name in names}
    return sums | {"length": sums["length"] / len(steps)}


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
