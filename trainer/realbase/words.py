"""SmolLM2's tokenizer with Qwen's marks of media, and the processor that writes them.

Four of its special tokens are of a training on code, which chats never hold. They get other names: ids and rows of the
embedding stay, so that every text has the ids that it had.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import Qwen3VLProcessor

from trainer.miniature.model import CHAT_TEMPLATE, build_processor, with_marks

RENAMED = {
    "<gh_stars>": "<|vision_start|>",
    "<issue_start>": "<|vision_end|>",
    "<issue_comment>": "<|image_pad|>",
    "<issue_closed>": "<|video_pad|>",
}
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    # What it was trained with where a chat has no message of the system.
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\n"
    + _SYSTEM
    + "<|im_end|>\\n' }}{%- endif %}"
    + CHAT_TEMPLATE
)


def processor_of(tokenizer: Any, template: str = TEMPLATE) -> Qwen3VLProcessor:
    """The processor of the embedded model, from the tokenizer of the source."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in described["added_tokens"]:
        token["content"] = RENAMED.get(token["content"], token["content"])
    # There as well: the ids of added tokens are looked up in it, and a name that is missing gets a new id.
    vocabulary = described["model"]["vocab"]
    for before, after in RENAMED.items():
        vocabulary[after] = vocabulary.pop(before)
    return build_processor(with_marks(Tokenizer.from_str(json.dumps(described))), template=template)
