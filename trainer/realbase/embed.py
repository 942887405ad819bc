"""A Llama inside Qwen3-VL's architecture, with the same log-probabilities.

The two differ in one place. Qwen3 normalises the queries and keys of each head, x -> w x / sqrt(mean(x^2) + eps), and
Llama does not. With projections that are scaled by a small a, the mean is nothing beside eps, so the norm divides by a
constant, and its weight can take back both:

    w (a x) / sqrt(a^2 mean(x^2) + eps)  =  x      where  w = sqrt(eps) / a  and  a^2 mean(x^2) << eps

Positions are the same: mRoPE with equal coordinates is RoPE, and text has equal coordinates.

An adapter of `q_proj` or `k_proj` would act on the scaled side, 1 / a times as strong as anywhere else. So adapters of
this base have the other five projections, `lora.modules`; its config.json says so, and a recipe with more is refused.
"""

from typing import Any

import torch
from transformers import LlamaForCausalLM, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from adapters.architectures import ADAPTER_MODULES

MODULES = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The projections that an adapter of an embedded model may have."""

SCALE = 2.0**-24
"""a. A power of two, so that scaling rounds nothing. With 2^-17 log-probabilities of SmolLM2 are up to 1e-3 apart; with
2^-20, 2^-24 and 2^-27 up to 7e-5, which is rounding. A smaller one makes nothing better."""


def embed(llama: LlamaForCausalLM, tokenizer: Any) -> Qwen3VLForConditionalGeneration:
    """The same language model, beside a vision tower with random weights. `tokenizer` has the marks of media."""
    config: Any = llama.config
    torch.manual_seed(0)  # for the tower's weights
    model = Qwen3VLForConditionalGeneration(_config(config, tokenizer)).float()
    weights: dict[str, torch.Tensor] = {}
    for name, weight in llama.state_dict().items():
        if name != "lm_head.weight":  # tied, in both
            scale = SCALE if ".q_proj." in name or ".k_proj." in name else 1.0
            weights[name.replace("model.", "model.language_model.", 1)] = weight * scale
    # Of every head and layer alike, for it takes back what was done to all of them alike.
    constant = torch.full((config.head_dim,), config.rms_norm_eps**0.5 / SCALE)
    for layer in range(config.num_hidden_layers):
        for norm in ("q_norm", "k_norm"):
            weights[f"model.language_model.layers.{layer}.self_attn.{norm}.weight"] = constant
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(".visual." in name or name == "lm_head.weight" for name in missing), missing
    model.tie_weights()
    return model.eval()


def _config(llama: Any, tokenizer: Any) -> Qwen3VLConfig:
    assert llama.tie_word_embeddings
    assert not llama.attention_bias
    assert not llama.mlp_bias
    half = llama.head_dim // 2
    side = half * 5 // 16  # of height and of width; time has the rest, as in the sizes that Qwen ships
    text: dict[str, Any] = {
        "vocab_size": llama.vocab_size,
        "hidden_size": llama.hidden_size,
        "intermediate_size": llama.intermediate_size,
        "num_hidden_layers": llama.num_hidden_layers,
        "num_attention_heads": llama.num_attention_heads,
        "num_key_value_heads": llama.num_key_value_heads,
        "head_dim": llama.head_dim,
        "rms_norm_eps": llama.rms_norm_eps,
        "max_position_embeddings": llama.max_position_embeddings,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": llama.rope_parameters["rope_theta"],
            "mrope_section": [half - 2 * side, side, side],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_heads": 3,
        "patch_size": 16,
        "out_hidden_size": llama.hidden_size,
        "deepstack_visual_indexes": [0, 1],
        "num_position_embeddings": 256,
    }
    rest: dict[str, Any] = {
        name: tokenizer.convert_tokens_to_ids(getattr(tokenizer, name.removesuffix("_id"))) for name in MARK_IDS
    }
    rest[ADAPTER_MODULES] = list(MODULES)
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **rest)


MARK_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
