"""Groups as the update gets them, from the miniature's questions and random completions; adapters that differ."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLProcessor

from adapters.base import locate
from service.media import Limits, Sampling, decode_image, decode_video
from trainer.data.generated import prompts
from trainer.data.prompts import make_prompt
from trainer.parts import Group, Prompt, TopK, TrainingSample
from trainer.update.packing import Span
from trainer.update.policy import Policy

BASE = locate("miniature")
BYTES = 256
"""Ids below it are plain bytes."""
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
        images = [prompt("image", 2 * number + place).images[0] for place in (0, 1)]
        return make_prompt("image", "which?", "red", images)
    content = [{"type": media} for media in kind.split(" and ")] + [{"type": "text", "text": "same?"}]
    images, videos = prompt("image", number).images, prompt("video", number).videos
    return make_prompt("video", [{"role": "user", "content": content}], "no", images, videos)


def inputs(one: Prompt) -> dict[str, Any]:
    """What transformers' own processor makes of a prompt: expanded ids, pixels, grids."""
    media: dict[str, Any] = {}
    if one.images:
        media["images"] = [decode_image(data, Limits()) for data in one.images]
    if one.videos:
        videos = [decode_video(data, Limits(), Sampling()) for data in one.videos]
        media |= {
            "videos": [video.frames_THWC for video in videos],
            "video_metadata": [video.metadata() for video in videos],
            "do_sample_frames": False,
        }
    text = processor().apply_chat_template(list(one.messages), tokenize=False, add_generation_prompt=True)
    return dict(processor()(text=[text], return_tensors="pt", **media))


def group(
    one: Prompt,
    lengths: Sequence[int],
    rng: np.random.Generator,
    *,
    top_k: int | None = None,
    weight: float = 1.0,
) -> Group:
    """Random completions of these lengths, with random advantages; with `top_k`, a teacher's bins of that many.

    The engine's log-probabilities are those that random tokens have under the miniature, roughly.
    """
    targets: list[TrainingSample] = []
    for length in lengths:
        targets.append(
            TrainingSample(
                rng.integers(0, BYTES, length),
                rng.normal(size=length).astype(np.float32),
                rng.normal(-18, 2, size=length).astype(np.float32),
                None if top_k is None else bins(length, top_k, weight, rng),
            )
        )
    return Group(inputs(one)["input_ids"][0].numpy(), one.images, one.videos, tuple(targets))


def bins(length: int, k: int, weight: float, rng: np.random.Generator) -> TopK:
    """Different ids at each position, their probabilities together 0.9."""
    ids_Ck = np.stack([rng.permutation(BYTES)[:k] for _ in range(length)])
    return TopK(ids_Ck, np.log(0.9 * rng.dirichlet(np.ones(k), size=length)).astype(np.float32), weight)


def noisy(policy: Policy, name: str, seed: int, *, rank: int = 16, alpha: int = 32) -> None:
    """A new adapter that is not the base: its B is random too."""
    policy.adapters.add(name, rank=rank, alpha=alpha, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in policy.adapters.parameters(name).items():
        if "lora_B" in key:
            parameter.data.copy_(torch.empty(parameter.shape).normal_(std=0.02, generator=generator))


def spans_of(*groups: tuple[int, Sequence[int]]) -> tuple[Span, ...]:
    """One after another, each a prompt's length and those of its completions, as they stand in a row."""
    spans: list[Span] = []
    for length, completions in groups:
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
            for place, token in enumerate(row):
                mask_TT[token, row[: place + 1]] = True
    return mask_TT
