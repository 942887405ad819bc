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

KNOWN = 2000
"""Training questions that the blind levels are fitted to: some hundreds for each count."""
SEED = 20
"""The seed of questions and samples: another than the 0 that the shipped base was built with."""


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
    """The accuracy of the best guess without looking."""
    constant: float
    """The accuracy of the best one answer to all questions."""


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
        rows = [check_level(model, processor, capability, level, split, count, n) for level in LEVELS]
        yield from rows
        figures = ("greedy", "sampled", "passed", "swapped", "guess", "constant")
        yield LevelAccuracy(
            capability.name, 0, *(sum(getattr(row, figure) for row in rows) / len(rows) for figure in figures)
        )


def check_level(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    capability: MiniatureCapability,
    level: int,
    split: Split,
    count: int,
    n: int,
) -> LevelAccuracy:
    unseen = list(itertools.islice(questions(capability, split, SEED, level), count))
    known = list(itertools.islice(questions(capability, "train", SEED, level), KNOWN))
    greedy = judge(model, processor, unseen)
    sampled = judge(model, processor, unseen, n=n, temperature=1.0)
    blind = judge(model, processor, swapped(unseen)) if capability.media != "none" else greedy
    return LevelAccuracy(
        capability=capability.name,
        level=level,
        greedy=_mean([any(marks) for marks in greedy]),
        sampled=_mean([mark for marks in sampled for mark in marks]),
        passed=_mean([any(marks) for marks in sampled]),
        swapped=_mean([any(marks) for marks in blind]),
        guess=best_guess(known, unseen),
        constant=best_constant(known, unseen),
    )


def judge(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    unseen: Sequence[Question],
    *,
    n: int = 1,
    temperature: float = 0.0,
) -> list[list[bool]]:
    """The n verdicts on each question."""
    prompter, marks = Prompter(model, processor), list[list[bool]]()
    together = unseen[0].capability.together
    for start in range(0, len(unseen), together):
        batch = unseen[start : start + together]
        most = batch[0].capability.max_tokens
        texts = sample(
            model, processor, prompter(batch), n=n, temperature=temperature, seed=SEED + start, max_tokens=most
        )
        for row, question in enumerate(batch):
            completions = texts[row * n : (row + 1) * n]
            marks.append([math_reward(text, question.answer) == 1.0 for text in completions])
    return marks


def _mean(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)
