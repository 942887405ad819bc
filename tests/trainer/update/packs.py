"""Rollouts as the update gets them, from the miniature's questions and random completions; adapters that differ."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLProcessor

from adapters.base import locate
from adapters.validate import TARGETS
from service.media import Limits, Sampling, decode_image, decode_video
from trainer.data.generated import prompts
from trainer.data.prompts import make_prompt
from trainer.parts import Completion, Prompt, Rollout, TopK
from trainer.update.packing import Span
from trainer.update.policy import Policy

BASE = locate("miniature")
BYTES = 256
"""Ids below it are plain bytes."""
CAPABILITY = "test"
KINDS = ("text", "image", "two images", "video", "image and video", "video and image")


@cache
def processor() -> Any:
    return Qwen3VLProcessor.from_pretrained(BASE)


@cache
def prompt(kind: str, number: int = 0) -> Prompt:
    """The `number`th of a kind."""
    if kind in ("text", "image", "video"):
        return prompts(kind, label=kind, split="train", size=number + 1, seed=0)[number]
    if kind == "two images":
        images = [prompt("image", 2 * number + index).images[0] for index in (0, 1)]
        return make_prompt("image", "which?", "red", images)
    content = [{"type": media} for media in kind.split(" and ")] + [{"type": "text", "text": "same?"}]
    images, videos = prompt("image", number).images, prompt("video", number).videos
    return make_prompt("video", [{"role": "user", "content": content}], "no", images, videos)


def inputs(question: Prompt) -> dict[str, Any]:
    """What transformers' own processor makes of a prompt: expanded ids, pixels, grids."""
    media: dict[str, Any] = {}
    if question.images:
        media["images"] = [decode_image(data, Limits()) for data in question.images]
    if question.videos:
        videos = [decode_video(data, Limits(), Sampling()) for data in question.videos]
        media |= {
            "videos": [video.frames_THWC for video in videos],
            "video_metadata": [video.metadata() for video in videos],
            "do_sample_frames": False,
        }
    text = processor().apply_chat_template(list(question.messages), tokenize=False, add_generation_prompt=True)
    return dict(processor()(text=[text], return_tensors="pt", **media))


def random_rollout(
    question: Prompt,
    lengths: Sequence[int],
    rng: np.random.Generator,
    *,
    top_k: int | None = None,
    beta: float = 1.0,
) -> Rollout:
    """Random completions of these lengths, with random advantages; with `top_k`, a teacher's bins of that many.

    The engine's log-probabilities are those that random tokens have under the miniature, roughly. All are of one
    capability: rollouts of several would not share a pack.
    """
    completions: list[Completion] = []
    for length in lengths:
        ids_C = rng.integers(0, BYTES, length)
        advantages_C = rng.normal(size=length).astype(np.float32)
        logprobs_C = rng.normal(-18, 2, size=length).astype(np.float32)
        bins = None if top_k is None else random_bins(length, top_k, beta, rng)
        completions.append(Completion(ids_C, logprobs_C, advantages_C=advantages_C, top_k=bins))
    ids_P = inputs(question)["input_ids"][0].numpy()
    return Rollout(replace(question, capability=CAPABILITY), ids_P, tuple(completions))


def random_bins(length: int, k: int, beta: float, rng: np.random.Generator) -> TopK:
    """Different ids at each position, their probabilities together 0.9."""
    ids_Ck = np.stack([rng.permutation(BYTES)[:k] for _ in range(length)])
    return TopK(ids_Ck, np.log(0.9 * rng.dirichlet(np.ones(k), size=length)).astype(np.float32), beta)


def with_advantage(completion: Completion, advantage: float) -> Completion:
    """The same for every token."""
    return replace(completion, advantages_C=np.full(len(completion.ids_C), advantage, np.float32))


def noisy(
    policy: Policy, name: str, seed: int, *, rank: int = 16, alpha: int = 32, modules: Collection[str] = TARGETS
) -> None:
    """A new adapter that is not the base: its B is random too."""
    policy.adapters.add(name, rank=rank, alpha=alpha, seed=seed, modules=modules)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in policy.adapters.parameters(name).items():
        if "lora_B" in key:
            parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.02, generator=generator))


def spans_of(*rollouts: tuple[int, Sequence[int]]) -> tuple[Span, ...]:
    """One after another, each a prompt's length and those of its completions, as they stand in a row."""
    spans: list[Span] = []
    for length, completions in rollouts:
        spans.append(Span(spans[-1].end if spans else 0, length, tuple(completions)))
    return tuple(spans)


def dense_mask(spans: Sequence[Span]) -> torch.Tensor:
    """Which token sees which [T, T], a token at a time."""
    mask_TT = torch.zeros(spans[-1].end, spans[-1].end, dtype=torch.bool)
    for span in spans:
        prompt = list(range(span.start, span.start + span.prompt))
        first = span.start + span.prompt
        rows = [prompt]
        for length in span.completions:
            rows.append([*prompt, *range(first, first + length)])
            first += length
        for row in rows:
            for position, token in enumerate(row):
                mask_TT[token, row[: position + 1]] = True
    return mask_TT
