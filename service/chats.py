"""Messages as a chat template takes them."""

from collections.abc import Mapping, Sequence
from typing import Any


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose contents are texts where they hold no media.

    Templates of models without vision know texts alone: Qwen3's takes a list of parts for an empty message and says
    nothing. Those of models with vision write the same for either form.
    """
    return [{**message, "content": _plain(message["content"])} for message in messages]


def _plain(content: Any) -> Any:
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return content
    return "".join(part["text"] for part in content)
