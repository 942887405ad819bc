"""The supervised stage: the real base learns from worked solutions to answer about what it reads and sees.

The stages are those of the miniature: first the skill, then that ways of working differ, then to slip. All projections
of the language model learn, those of queries and keys too: a row of digits is read in its order by attention. They are
scaled by a (`embed`), so their gradients and steps are taken as those of the weights that they stand for:

    W_scaled = a W,   dL/dW = a dL/dW_scaled,   a step of W by d is one of W_scaled by a d

Embeddings stay: they are what the vision tower has learnt to write. Every step draws from streams of its own, so a
stage that goes on from a checkpoint makes the same steps.

Left out: where checkpoints lie, and who builds (`build`).
"""

import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.miniature.batch import Prompter
from trainer.miniature.build import Habits, Training, completion_ids, completion_loss, stage_at, write
from trainer.miniature.question import LEVELS, MiniatureCapability, questions
from trainer.realbase.embed import MODULES, SCALE

BETAS = (0.9, 0.98)
_STREAMS = 1_000_000
"""Seeds of questions that a training has: one for each of its steps."""


@dataclass(frozen=True, slots=True)
class Lessons:
    """Everything that decides the weights."""

    capabilities: Sequence[MiniatureCapability]
    habits: Habits
    training: Training
    questions: int
    """Of each capability in a step, all of one level."""


def teach(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    lessons: Lessons,
    checkpoint: Path,
    tell: Callable[[int, int], None],
    *,
    every: int = 10,
) -> None:
    """Trains the model in place. Every so many steps it writes the checkpoint, and goes on from one that is there."""
    training = lessons.training
    learnt = _learnt(model)
    scaled = [parameter for name, parameter in learnt.items() if name.split(".")[-2] not in MODULES]
    plain = [parameter for name, parameter in learnt.items() if name.split(".")[-2] in MODULES]
    groups = [{"params": plain, "scale": 1.0}, {"params": scaled, "scale": SCALE}]
    optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=BETAS, weight_decay=0.0, fused=True)
    first = _resume(learnt, optimiser, checkpoint)
    prompter = Prompter(model, processor)
    model.train()
    for step in range(first, training.steps):
        tell(step, training.steps)
        for group in optimiser.param_groups:
            group["lr"] = training.lr * training.rate(step) * group["scale"]
        rng, stage = random.Random(f"{training.seed} {step}"), stage_at(step, training, lessons.habits)
        seed = training.seed * _STREAMS + step
        for capability in lessons.capabilities:
            drawn = questions(capability, "train", seed, LEVELS[step % len(LEVELS)])
            batch = list(itertools.islice(drawn, lessons.questions))
            work = [write(question, stage, rng) for question in batch]
            loss = completion_loss(model, prompter(batch), completion_ids(processor, work))
            (loss / len(lessons.capabilities)).backward()
        for parameter in scaled:
            assert parameter.grad is not None
            parameter.grad.mul_(SCALE)
        torch.nn.utils.clip_grad_norm_(learnt.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % every == 0 and step + 1 < training.steps:
            _save(step + 1, learnt, optimiser, checkpoint)
    tell(training.steps, training.steps)
    model.requires_grad_(False).eval()


def _learnt(model: Qwen3VLForConditionalGeneration) -> dict[str, torch.nn.Parameter]:
    model.requires_grad_(False)
    layers: Any = model.model.language_model.layers
    learnt = {name: parameter for name, parameter in layers.named_parameters() if "_proj." in name}
    for parameter in learnt.values():
        parameter.requires_grad_(True)
    return learnt


def _save(step: int, learnt: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, checkpoint: Path) -> None:
    draft = checkpoint.with_suffix(".part")
    weights = {name: parameter.detach() for name, parameter in learnt.items()}
    torch.save({"step": step, "weights": weights, "optimiser": optimiser.state_dict()}, draft)
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(checkpoint)  # whole or not at all: the process may end while it writes


def _resume(learnt: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, checkpoint: Path) -> int:
    """The first step that is left."""
    if not checkpoint.exists():
        return 0
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    with torch.no_grad():
        for name, parameter in learnt.items():
            parameter.copy_(saved["weights"][name])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["step"]
