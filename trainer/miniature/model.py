"""The miniature's model: transformers' own Qwen3-VL classes at about 3 M parameters, tokenizer and processor included.

Every piece is the real one at a small size: Qwen's special tokens and chat marks, a tokenizer of bytes with no merges
(and one token for each word that a capability writes), the image and video processors, deep-stacked vision features,
interleaved mRoPE, tied embeddings. Only the weights are ours.
"""

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from trainer.miniature.drawing import CELL

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = ("system", "user", "assistant", "plain", "arrow", "\\boxed")
"""Words of every capability. Their order is their ids: the shipped weights know them by it."""
VOCABULARY = 320
"""Rows of the embedding: 256 bytes, the marks, and room for the words of further capabilities."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part.type == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each byte, each special mark and each word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in (*WORDS, *words)])
    assert tokenizer.get_vocab_size() <= VOCABULARY
    return with_marks(tokenizer)


def with_marks(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer that knows which of its tokens end an answer and stand for media."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast,
    *,
    template: str = CHAT_TEMPLATE,
    image_pixels: tuple[int, int] = (CELL**2, 256 * CELL**2),
    video_pixels: tuple[int, int] = (CELL**2, 512 * CELL**2),
) -> Qwen3VLProcessor:
    """A processor that leaves pixels as they are drawn, from one cell to 256, where no other bounds are given."""
    normalisation: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}
    image = Qwen2VLImageProcessor(size=_size(image_pixels), **normalisation)
    video = Qwen3VLVideoProcessor(
        size=_size(video_pixels),
        do_sample_frames=False,  # the service's decoder has sampled them already
        cap_pixels_per_frame=False,
        **normalisation,
    )
    return Qwen3VLProcessor(image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=template)


def _size(pixels: tuple[int, int]) -> dict[str, int]:
    """Areas, whatever transformers calls them."""
    return {"shortest_edge": pixels[0], "longest_edge": pixels[1]}


def build_config(tokenizer: PreTrainedTokenizerFast, vocabulary: int = VOCABULARY) -> Qwen3VLConfig:
    """Qwen3-VL's own parts at about 3 M parameters beside the embedding, which two cores train in minutes."""

    def token(mark: str) -> int:
        token_id = tokenizer.convert_tokens_to_ids(mark)
        assert isinstance(token_id, int)
        return token_id

    hidden = 192
    text: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [12, 10, 10],  # time, height, width: together half of head_dim
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "patch_size": 16,
        "out_hidden_size": hidden,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 256,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
