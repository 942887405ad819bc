"""Completions from transformers in batches: prompts are prefilled once and their cache is shared by n samples.

This is the base's own yardstick, independent of any engine. The service is what the rest of the system samples from.

Axes: B prompts, R = B * n completions (those of one prompt together), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.miniature.batch import PromptBatch


@torch.inference_mode()
def sample(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    prompt: PromptBatch,
    *,
    n: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int = 48,
) -> list[str]:
    """`n` completions of each prompt as text; temperature 0 is greedy."""
    tokenizer, language = processor.tokenizer, model.model.language_model
    allowed_V = allowed_tokens(model, processor)
    generator = torch.Generator().manual_seed(seed)
    text_config: Any = model.config.text_config
    cache = DynamicCache(config=text_config)
    mask = {} if prompt.mask_BT is None else {"attention_mask": prompt.mask_BT}
    hidden_BD = model.model(
        input_ids=prompt.ids_BT,
        position_ids=prompt.positions_3BT,
        past_key_values=cache,
        use_cache=True,
        **mask,
        **prompt.pixels,
    ).last_hidden_state[:, -1]
    # Repeated after the prefill, so that a prompt and its media are read once for all its samples.
    hidden_RD = hidden_BD.repeat_interleave(n, dim=0)
    cache.batch_repeat_interleave(n)
    mask = {name: mask_BT.repeat_interleave(n, dim=0) for name, mask_BT in mask.items()}
    next_3R1 = prompt.positions_3BT[:, :, -1:].repeat_interleave(n, dim=1) + 1
    done_R = torch.zeros(len(hidden_RD), dtype=torch.bool)
    tokens: list[Tensor] = []
    for offset in range(max_tokens):
        logits_RV = model.lm_head(hidden_RD).float().masked_fill(~allowed_V, -torch.inf)
        if temperature:
            probabilities_RV = (logits_RV / temperature).softmax(-1)
            token_R = torch.multinomial(probabilities_RV, 1, generator=generator)[:, 0]
        else:
            token_R = logits_RV.argmax(-1)
        # Finished rows stay, as padding: the cache keeps its rows until all of them have ended.
        token_R = token_R.masked_fill(done_R, tokenizer.pad_token_id)
        tokens.append(token_R)
        done_R |= token_R == tokenizer.eos_token_id
        if done_R.all():
            break
        mask = {name: functional.pad(mask_RT, (0, 1), value=1) for name, mask_RT in mask.items()}
        hidden_RD = language(
            inputs_embeds=language.embed_tokens(token_R)[:, None],
            position_ids=next_3R1 + offset,
            past_key_values=cache,
            use_cache=True,
            **mask,
        ).last_hidden_state[:, -1]
    return tokenizer.batch_decode(torch.stack(tokens, dim=1), skip_special_tokens=True)


def allowed_tokens(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> Tensor:
    """Every token of the tokenizer but the special ones, and the end mark [V]."""
    tokenizer = processor.tokenizer
    text_config: Any = model.config.text_config
    # Rows beyond the tokenizer's are room for other words: nothing has trained them, and they decode to nothing.
    allowed_V = torch.arange(text_config.vocab_size) < len(tokenizer)
    allowed_V[tokenizer.all_special_ids] = False
    allowed_V[tokenizer.eos_token_id] = True
    return allowed_V
