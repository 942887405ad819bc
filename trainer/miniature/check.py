"""Measures a base: greedy, sampled and pass@n accuracy for each capability and level, beside the blind levels.

Everything is answered by transformers (see `sample`) and judged by the `math` reward, on one split's questions.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.miniature.batch import Prompter
from trainer.miniature.blind import best_constant, best_guess, swapped
from trainer.miniature.question import LEVELS, MiniatureCapability, Question, Split, questions
from trainer.miniature.sample import sample
from trainer.rewards.mathematics import math_reward

BATCH = 128
KNOWN = 2000  # training questions that the blind levels are fitted to
SEED = 20


@dataclass(frozen=True, slots=True)
class LevelAccuracy:
    """Accuracies of one capability at one level; `level` 0 is the mean over the levels."""

    capability: str
    level: int
    greedy: float
    sampled: float
    """At temperature 1."""
    passed: float
    """Share of questions with at least one right answer in n samples."""
    swapped: float
    """Greedy, each question with another's media; equal to `greedy` for text, which has none."""
    guess: float
    constant: float


def check(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    capabilities: Sequence[MiniatureCapability],
    *,
    split: Split = "validation",
    count: int = 256,
    n: int = 8,
) -> Iterator[LevelAccuracy]:
    """A row for each level of each capability, then one for both; `count` questions a level."""
    for capability in capabilities:
        rows = [_check_level(model, processor, capability, level, split, count, n) for level in LEVELS]
        yield from rows
        figures = ("greedy", "sampled", "passed", "swapped", "guess", "constant")
        yield LevelAccuracy(
            capability.name, 0, *(sum(getattr(row, figure) for row in rows) / len(rows) for figure in figures)
        )


def _check_level(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    capability: MiniatureCapability,
    level: int,
    split: Split,
    count: int,
    n: int,
) -> LevelAccuracy:
    asked = list(itertools.islice(questions(capability, split, SEED, level), count))
    known = list(itertools.islice(questions(capability, "train", SEED, level), KNOWN))
    greedy = judge(model, processor, asked)
    sampled = judge(model, processor, asked, n=n, temperature=1.0)
    unseen = judge(model, processor, swapped(asked)) if capability.media != "none" else greedy
    return LevelAccuracy(
        capability=capability.name,
        level=level,
        greedy=_mean([any(marks) for marks in greedy]),
        sampled=_mean([mark for marks in sampled for mark in marks]),
        passed=_mean([any(marks) for marks in sampled]),
        swapped=_mean([any(marks) for marks in unseen]),
        guess=best_guess(known, asked),
        constant=best_constant(known, asked),
    )


def judge(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    asked: Sequence[Question],
    *,
    n: int = 1,
    temperature: float = 0.0,
) -> list[list[bool]]:
    """For each question its n verdicts."""
    prompter, marks = Prompter(model, processor), list[list[bool]]()
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        texts = sample(model, processor, prompter(batch), n=n, temperature=temperature, seed=SEED + start)
        for place, question in enumerate(batch):
            own = texts[place * n : (place + 1) * n]
            marks.append([math_reward(text, question.answer) == 1.0 for text in own])
    return marks


def _mean(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)
