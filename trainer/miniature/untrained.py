"""An untrained base: the miniature's layers with the vocabulary, chat template and processor of Qwen3-VL-Instruct.

On a machine without a hub a recipe and its data are tried with it: prompts have the tokens, and media the patches, that
the real model would get, and every process of a run works. It has learnt nothing, so it answers with random tokens.

The vocabulary is Qwen's own file of byte pairs, which the package `dashscope` brings along. Left out: weights.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from adapters.errors import UserError
from trainer.miniature.model import build_config, build_processor, with_marks

ROWS = 151_936
"""Rows of Qwen3-VL's embedding; those after the last token have no text."""
# Their order is their ids, from 151,643. The first are special: left out of a decoded text, and never sampled.
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
_PLAIN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
)
TEMPLATE = Path(__file__).with_name("qwen3_vl.jinja")
_IMAGE_PIXELS, _VIDEO_PIXELS = (256 * 256, 4096 * 4096), (64 * 64, 1024 * 1024)
"""As in Qwen3-VL-Instruct, but of the largest clip, all frames together, a 24th: the engine tries one as it starts."""


def build_untrained(seed: int) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """The model and its processor; of the weights only those of norms are not random."""
    tokenizer = build_qwen_tokenizer(vocabulary_file())
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, ROWS)).eval()
    processor = build_processor(
        tokenizer, template=TEMPLATE.read_text(), image_pixels=_IMAGE_PIXELS, video_pixels=_VIDEO_PIXELS
    )
    return model, processor


def vocabulary_file() -> Path:
    """Qwen's byte pairs with their ranks. A UserError where the package is missing."""
    # Without an import of it: that takes seconds and opens what a client of a web service needs.
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        raise UserError("the vocabulary of Qwen comes with dashscope: pip install 'coevo[qwen-vocabulary]'")
    return Path(spec.origin).parent / "resources" / "qwen.tiktoken"


def build_qwen_tokenizer(vocabulary: Path) -> PreTrainedTokenizerFast:
    """Qwen3-VL's tokenizer from Qwen's file of byte pairs."""
    converter: Any = TikTokenConverter(
        vocab_file=str(vocabulary), pattern=PRETOKENIZE_REGEX, extra_special_tokens=list(_SPECIAL)
    )
    tokenizer = converter.converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _PLAIN])
    return with_marks(tokenizer)
