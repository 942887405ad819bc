"""What `gpu_step` measures: a model of Qwen3-VL-4B's shape with random weights, and a step of it in four ways.

All have the same adapter, the same loss, layers that are computed again in the backward pass and log-probabilities in
chunks. They differ in which tokens go through the model, in how these see each other, and in what is compiled.

Axes: G completions of a prompt, C tokens of each, P of the prompt, T tokens of a row, N predicted ones, D hidden size.
"""

import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLProcessor

from adapters.base import locate
from trainer.doctor.memory import Shape, shape_of
from trainer.parts import Completion, Prompt, Rollout
from trainer.recipe import LossConfig
from trainer.update import attention
from trainer.update.logprobs import chosen_logprobs
from trainer.update.losses import surrogate, token_weights
from trainer.update.packing import lay_out
from trainer.update.policy import Policy
from trainer.update.update import advantages_of

PEAKS = {"H100": 989e12, "H200": 989e12}
"""FLOP/s, by what the card's name holds."""
ADAPTERS = ("text", "image", "video")
LOSS = LossConfig()
PROMPT = Prompt("bench", "text", (), "")
"""What the update asks of a prompt: its capability, and that it has no media."""

Case = tuple[int, int]
"""Tokens of a prompt and of each completion."""

QWEN3_VL_4B: dict[str, Any] = {
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151_936,
        "max_position_embeddings": 262_144,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
        },
    },
    "vision_config": {
        "hidden_size": 1024,
        "depth": 24,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    config: Mapping[str, Any]
    rank: int = 64
    group: int = 8
    cases: tuple[Case, ...] = ((1024, 1024), (4096, 512))
    lengths: tuple[Case, ...] = ((1500, 700), (777, 333), (2048, 611))
    """The packs that come later, each of a length that was not seen before."""
    rounds: int = 5
    dense_limit: int = 8192
    """Packed tokens above which a dense mask is refused."""
    logprob_rows: int = 16_384
    chunks: tuple[int, ...] = (128, 512, 1024, 4096)
    """Rows of logits at a time."""


LARGE = Sizes(QWEN3_VL_4B)
TINY = Sizes(
    config={
        "tie_word_embeddings": True,
        "image_token_id": 301,
        "video_token_id": 302,
        "text_config": QWEN3_VL_4B["text_config"]
        | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"intermediate_size": 96, "vocab_size": 320},
        "vision_config": QWEN3_VL_4B["vision_config"]
        | {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
        | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
    rank=4,
    group=3,
    cases=((40, 12), (24, 9)),
    lengths=((31, 7),),
    rounds=1,
    dense_limit=60,
    logprob_rows=64,
    chunks=(64,),
)
"""For a CPU: does it all run?"""


@dataclass(frozen=True, slots=True, eq=False)
class Lab:
    sizes: Sizes
    shape: Shape
    policy: Policy
    model: Any
    peak_flops: float | None

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def language(self) -> Any:
        return self.model.model.language_model

    @property
    def output(self) -> Tensor:
        """The matrix from hidden states to logits [V, D]."""
        return self.model.lm_head.weight

    def synchronise(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def allocated(self) -> int:
        """Bytes of tensors; 0 on a CPU, as all memory here."""
        return torch.cuda.memory_allocated() if self.on_gpu else 0

    def peak(self) -> int:
        """The most of them since it was asked for last."""
        if not self.on_gpu:
            return 0
        most = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return most

    def context(self) -> int:
        """Bytes in use on the device that PyTorch has not taken for tensors."""
        if not self.on_gpu:
            return 0
        free, size = torch.cuda.mem_get_info()
        return size - free - torch.cuda.memory_reserved()

    def clear(self) -> None:
        """Whatever a measurement has left."""
        self.model.zero_grad(set_to_none=True)
        self.policy.vision.forget()
        if self.on_gpu:
            torch.cuda.empty_cache()


def make_lab(sizes: Sizes, device: torch.device) -> Lab:
    """With one adapter."""
    config = Qwen3VLConfig(**sizes.config)
    with torch.device(device):  # drawn where it stays, normal with deviation 0.02
        model: Any = AutoModelForImageTextToText.from_config(
            config,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            attn_implementation={"text_config": attention.NAME, "vision_config": "sdpa"},
        )
    policy = Policy(model, Qwen3VLProcessor.from_pretrained(locate("miniature")))
    policy.recompute_layers()
    if device.type == "cuda":
        policy.compile_layers()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no card"
    peak = next((flops for card, flops in PEAKS.items() if card in name), None)
    assumed = f"peak of {peak / 1e12:.0f} TFLOP/s assumed" if peak else "no MFU, its peak is not known here"
    print(f"{name}, torch {torch.__version__}, {sum(p.numel() for p in model.parameters()):,} parameters; {assumed}")
    lab = Lab(sizes, shape_of(config.to_dict()), policy, model, peak)
    add_adapter(lab, ADAPTERS[0])
    return lab


def add_adapter(lab: Lab, name: str) -> None:
    """Not B = 0: products with zeros are faster than others."""
    lab.policy.adapters.add(name, rank=lab.sizes.rank, alpha=lab.sizes.rank, seed=0)
    with torch.no_grad():
        for key, parameter in lab.policy.adapters.parameters(name).items():
            if "lora_B" in key:
                parameter.normal_(std=0.01)


def make_rollout(lab: Lab, case: Case) -> Rollout:
    """Random tokens of text; every other completion is good."""
    prompt, completion = case
    rng = np.random.default_rng(case)
    text = min(lab.shape.vocabulary, lab.model.config.image_token_id)
    engine_C = np.full(completion, -np.log(text), np.float32)
    completions = tuple(
        Completion(
            rng.integers(0, text, completion),
            engine_C,
            advantages_C=np.full(completion, (-1) ** number, np.float32),
        )
        for number in range(lab.sizes.group)
    )
    return Rollout(PROMPT, rng.integers(0, text, prompt), completions)


# ---- ways of one step ----


@dataclass(frozen=True, slots=True)
class Way:
    """How a rollout goes through the model."""

    attention: str
    logprobs: Callable[[Lab, Rollout], Tensor]
    """Log-probabilities of all tokens of the completions [N]."""
    load: Callable[[Rollout], tuple[int, int]]
    """Tokens that the model computes, and pairs of them that see each other."""
    compiled: bool = False
    """The layers; attention is in any case."""
    backend: str = "TRITON"
    """Of flex attention; a CPU has none of them."""


def packed(lab: Lab, rollout: Rollout) -> Tensor:
    """Ours: the prompt once, each completion sees it and itself."""
    return lab.policy.logprobs(ADAPTERS[0], lay_out([rollout])).chosen_NK[:, 0]


def dense(lab: Lab, rollout: Rollout) -> Tensor:
    """The same pack, with all its pairs in a mask [T, T]."""
    lab.policy.adapters.select(ADAPTERS[0])
    pack = lay_out([rollout])
    (span,) = pack.spans
    places_T = torch.arange(span.end, device=lab.device)
    mask_TT = attention.visibility(pack.spans, lab.device)(places_T[0], places_T[0], places_T[:, None], places_T[None])
    after = [torch.arange(length, device=lab.device) + span.prompt for length in span.completions]
    positions_T = torch.cat([places_T[: span.prompt], *after])
    ids_T, sources_N, targets_N = (
        torch.from_numpy(array).to(lab.device) for array in (pack.ids_T, pack.sources_N, pack.targets_N)
    )
    output = lab.language(
        input_ids=ids_T[None],
        position_ids=positions_T.expand(3, 1, -1),
        attention_mask=mask_TT[None, None],
        use_cache=False,
    )
    return _chosen(lab, output.last_hidden_state[0, sources_N], targets_N)


def rows(lab: Lab, rollout: Rollout) -> Tensor:
    """As trainers do it that do not pack: each completion in a row with a copy of the prompt."""
    lab.policy.adapters.select(ADAPTERS[0])
    completions_GC = torch.from_numpy(np.stack([completion.ids_C for completion in rollout.completions])).to(lab.device)
    ids_P = torch.from_numpy(rollout.ids_P).to(lab.device)
    ids_GT = torch.cat([ids_P.expand(len(completions_GC), -1), completions_GC], dim=1)
    hidden_GTD = lab.language(input_ids=ids_GT, use_cache=False).last_hidden_state
    return _chosen(lab, hidden_GTD[:, len(ids_P) - 1 : -1].flatten(0, 1), completions_GC.flatten())


def _chosen(lab: Lab, hidden_ND: Tensor, ids_N: Tensor) -> Tensor:
    return chosen_logprobs(hidden_ND, lab.output, ids_N[:, None]).chosen_NK[:, 0]


def _pack_load(rollout: Rollout) -> tuple[int, int]:
    pack = lay_out([rollout])
    return len(pack.ids_T), pack.num_pairs


def _rows_load(rollout: Rollout) -> tuple[int, int]:
    lengths = [len(rollout.ids_P) + len(completion.ids_C) for completion in rollout.completions]
    return sum(lengths), sum(length * (length + 1) // 2 for length in lengths)


OURS, EAGER, ROWS, DENSE = "packed", "packed, layers not compiled", "padded rows", "dense mask"
FLASH = "packed, attention by FLASH"
WAYS = {
    OURS: Way(attention.NAME, packed, _pack_load, compiled=True),
    EAGER: Way(attention.NAME, packed, _pack_load),
    ROWS: Way("sdpa", rows, _rows_load),
    DENSE: Way("sdpa", dense, _pack_load),
    # FlashAttention 4, where its package is; last, for it may be refused.
    FLASH: Way(attention.NAME, packed, _pack_load, compiled=True, backend="FLASH"),
}


def forward_backward(lab: Lab, way: Way, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
    """Its log-probabilities and gradients."""
    with _as(lab, way):
        logprobs_N = way.logprobs(lab, rollout)
        _loss(logprobs_N, rollout).backward()
    gradients: dict[str, Tensor] = {}
    for key, parameter in lab.policy.adapters.parameters(ADAPTERS[0]).items():
        assert parameter.grad is not None
        gradients[key], parameter.grad = parameter.grad, None
    return logprobs_N.detach(), gradients


@contextmanager
def _as(lab: Lab, way: Way) -> Generator[None]:
    """For the backward pass too, which computes the layers again."""
    layers = lab.language.layers
    compiled = [layer._compiled_call_impl for layer in layers]
    lab.language.set_attn_implementation(way.attention)
    if not way.compiled:
        for layer in layers:
            layer._compiled_call_impl = None  # what `compile` sets; there is no way back
    try:
        with patch.object(attention, "_KERNEL_OPTIONS", {"BACKEND": way.backend}):  # a constant of what is measured
            yield
    finally:
        for layer, call in zip(layers, compiled, strict=True):
            layer._compiled_call_impl = call
        lab.language.set_attn_implementation(attention.NAME)


def _loss(logprobs_N: Tensor, rollout: Rollout) -> Tensor:
    """The update's, for a batch of this rollout."""
    engine_N = np.concatenate([completion.logprobs_C for completion in rollout.completions])
    advantages_N = np.concatenate([advantages_of(completion) for completion in rollout.completions])
    lengths = [len(completion.ids_C) for completion in rollout.completions]
    weights_N = token_weights(
        lengths, num_sequences=len(lengths), num_tokens=sum(lengths), normalise=LOSS.normalise
    ).to(logprobs_N.device)
    policy_gradient = surrogate(
        logprobs_N,
        logprobs_N.detach(),
        torch.from_numpy(engine_N).to(logprobs_N.device),
        torch.from_numpy(advantages_N).to(logprobs_N.device),
        eps_low=LOSS.eps_low,
        eps_high=LOSS.eps_high,
        importance_cap=LOSS.importance_cap,
    )
    return (policy_gradient.loss_N * weights_N).sum()


# ---- time and memory ----


@dataclass(frozen=True, slots=True)
class Timing:
    first: float
    """Seconds of the first call."""
    seconds: float
    """Median of the others."""
    peak: int
    """Most bytes of tensors in those."""


def timed(lab: Lab, work: Callable[[], object]) -> Timing:
    first = seconds(lab, work)
    lab.peak()
    times = [seconds(lab, work) for _ in range(lab.sizes.rounds)]
    return Timing(first, statistics.median(times), lab.peak())


def seconds(lab: Lab, work: Callable[[], object]) -> float:
    lab.synchronise()
    began = time.perf_counter()
    work()
    lab.synchronise()
    return time.perf_counter() - began
