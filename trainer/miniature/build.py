"""Trains the miniature's base: it learns the skill, then that styles differ, then to slip.

In the first stage every derivation is right and its style is a coin's throw. In the second the style decides: right in
the reliable one, slipping everywhere in the other. In the third the reliable style is written less often than the
other, and both slip at their rates. The result knows how to do the work and samples mistakes, which is the head-room
that reinforcement learning needs. Without the second stage the rates of the two styles do not come apart. Only
questions of the training split are seen.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.miniature.batch import PromptBatch, Prompter
from trainer.miniature.model import build_config, build_processor, build_tokenizer
from trainer.miniature.question import (
    LEVELS,
    Media,
    MiniatureCapability,
    Question,
    other_style,
    questions,
    reliable_style,
    slip_rate,
)


@dataclass(frozen=True, slots=True)
class Habits:
    """The way the base works after the last stage of its training."""

    conflict: float = 1.0
    """0: the same style is reliable in every capability; 1: each has its own; 0.5: the styles are alike."""
    careful: float = 0.25
    """Share of slips in the reliable style."""
    careless: float = 0.80
    """Share of slips in the other style."""
    reliable: float = 0.45
    """Share of derivations in the reliable style: under a half, so that the greedy answer is the careless one."""


BATCH: dict[Media, int] = {"none": 56, "image": 36, "video": 30}
"""Questions in a step: those without media are short, so that more of them cost the same time."""
SKILL = Habits(careful=0.0, careless=0.0, reliable=0.5)
"""The first stage: every derivation is right."""
STYLE = Habits(careful=0.0, careless=1.0, reliable=0.5)
"""The second stage: the style alone decides, right or slipping everywhere."""


@dataclass(frozen=True, slots=True)
class Training:
    """The length and the pace of the training. With the defaults it takes minutes on two cores."""

    steps: int = 1100
    skill: float = 0.35
    """Share of the steps that the first stage takes."""
    style: float = 0.30
    """Share of the steps that the second stage takes; the last has the rest."""
    lr: float = 1.5e-3
    warmup: int = 40
    """Steps over which the learning rate rises."""
    last_lr: float = 0.07
    """Share of the learning rate that is left at the end."""
    seed: int = 0

    def rate(self, step: int) -> float:
        """The share of the learning rate that a step has."""
        # lr(t) = lr * min(1, (t + 1) / warmup) * (1 - (1 - last_lr) * t / steps)
        return min(1.0, (step + 1) / self.warmup) * (1 - (1 - self.last_lr) * step / self.steps)


def build(
    capabilities: Sequence[MiniatureCapability], habits: Habits, training: Training, tell: Callable[[int, int], None]
) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    tokenizer = build_tokenizer(dict.fromkeys(word for capability in capabilities for word in capability.words))
    processor = build_processor(tokenizer)
    torch.manual_seed(training.seed)  # the first weights come from torch's global stream
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer)).train()
    prompter = Prompter(model, processor)
    optimiser = torch.optim.AdamW(model.parameters(), lr=training.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, training.rate)
    # The only stream of styles and slips: drawn from in the order of the questions, it decides the weights.
    rng = random.Random(training.seed)
    sources = [
        (capability, questions(capability, "train", training.seed, level))
        for level in LEVELS
        for capability in capabilities
    ]
    for step, (capability, source) in zip(range(training.steps), itertools.cycle(sources), strict=False):
        stage = stage_at(step, training, habits)
        batch = list(itertools.islice(source, BATCH[capability.media]))
        derivations = [write(question, stage, rng) for question in batch]
        loss = completion_loss(model, prompter(batch), completion_ids(processor, derivations))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        tell(step + 1, training.steps)
    return model.eval(), processor


def stage_at(step: int, training: Training, habits: Habits) -> Habits:
    """The habits that a step teaches; `habits` are those of the last stage."""
    done = step / training.steps
    stage = SKILL if done < training.skill else STYLE if done < training.skill + training.style else habits
    return replace(stage, conflict=habits.conflict)


def write(question: Question, habits: Habits, rng: random.Random) -> str:
    """A derivation as somebody with these habits writes it."""
    style = reliable_style(question.capability, habits.conflict)
    if rng.random() >= habits.reliable:
        style = other_style(style)
    rate = slip_rate(question.capability, style, habits.conflict, habits.careful, habits.careless)
    return question.derivation(style, lambda: rng.random() < rate)


def completion_ids(processor: Qwen3VLProcessor, derivations: Sequence[str]) -> Tensor:
    """Completions with their end mark, padded on the right [B, C]."""
    tokenizer = processor.tokenizer
    rows: list[list[int]] = tokenizer([derivation + tokenizer.eos_token for derivation in derivations])["input_ids"]
    width = max(map(len, rows))
    # Not padded with the end mark: the loss leaves padding out, and must not leave out where to stop.
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])


def completion_loss(model: Qwen3VLForConditionalGeneration, prompt: PromptBatch, completion_BC: Tensor) -> Tensor:
    """Cross-entropy of the completion tokens; padding does not count."""
    B, C = completion_BC.shape
    text_config: Any = model.config.text_config
    after_3BC = prompt.positions_3BT[:, :, -1:] + 1 + torch.arange(C).expand(3, B, -1)
    mask = {} if prompt.mask_BT is None else {"attention_mask": functional.pad(prompt.mask_BT, (0, C), value=1)}
    logits_BCV = model(
        input_ids=torch.cat([prompt.ids_BT, completion_BC], dim=1),
        position_ids=torch.cat([prompt.positions_3BT, after_3BC], dim=2),
        logits_to_keep=C + 1,  # the prompt's last token predicts the first of the completion
        use_cache=False,
        **mask,
        **prompt.pixels,
    ).logits[:, :-1]
    return functional.cross_entropy(
        logits_BCV.flatten(0, 1), completion_BC.flatten(), ignore_index=text_config.pad_token_id
    )


def save(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, folder: Path) -> None:
    model.bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
