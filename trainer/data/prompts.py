"""What a prompt is, and which prompts a step gets.

A prompt is a chat with marks where media stand, the media as encoded bytes, and the answer that is right. Every source
of prompts ends in `make_prompt`: data sets (trainer.data.datasets) and questions that are generated.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.errors import UserError
from trainer.parts import ChatMessage, Content, MediaContent, Prompt

MARKS = ("image", "video")
ROLES = ("system", "user", "assistant")


class PromptError(UserError):
    """Why something cannot be a prompt; `reason` is for counting."""

    def __init__(self, message: str, reason: str = "prompt") -> None:
        super().__init__(message)
        self.reason = reason


class Prompts(Protocol):
    """Many prompts, built when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Prompt: ...
    @property
    def fingerprint(self) -> str:
        """A hash of all of them in their order."""
        ...


@dataclass(frozen=True)
class PromptList:
    """Prompts that are in memory already, such as generated ones."""

    prompts: Sequence[Prompt]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    @property
    def fingerprint(self) -> str:
        return digest([prompt.id for prompt in self.prompts])


def draw(prompts: Prompts, *, seed: int, branch: str, step: int, count: int) -> tuple[int, ...]:
    """The indices of the prompts that a step gets, steps counted from 0: a function of nothing but its arguments.

    All steps together walk through one random order of the prompts after the other, so every prompt comes once before
    any comes again. A step that crosses from one order into the next may hold a prompt twice.
    """
    # No state between steps: a worker that takes over a branch, or a replay, draws what the first one drew.
    size, fingerprint, first = len(prompts), prompts.fingerprint, step * count
    orders = {
        epoch: _order(size, fingerprint, seed, branch, epoch)
        for epoch in range(first // size, (first + count - 1) // size + 1)
    }
    return tuple(int(orders[position // size][position % size]) for position in range(first, first + count))


@lru_cache(maxsize=8)  # the steps of an epoch share it, and a process has a few branches
def _order(size: int, fingerprint: str, seed: int, branch: str, epoch: int) -> NDArray[np.int64]:
    key = np.frombuffer(bytes.fromhex(digest([seed, fingerprint, branch, epoch])), "<u4")
    return np.random.RandomState(key).permutation(size)  # numpy keeps the stream of this class for ever


def make_prompt(
    capability: str,
    text: str | Sequence[Mapping[str, Any]],
    answer: object,
    images: Sequence[bytes] = (),
    videos: Sequence[bytes] = (),
    *,
    system: str | None = None,
    suffix: str | None = None,
) -> Prompt:
    """A prompt from a question or chat messages (see `chat`), an answer and encoded media."""
    messages = chat(text, len(images), len(videos), system=system, suffix=suffix)
    gold = answer_text(answer)
    media = [[hashlib.sha256(data).hexdigest() for data in files] for files in (images, videos)]
    prompt_id = digest([capability, messages, gold, media])[:32]
    return Prompt(prompt_id, capability, messages, gold, tuple(images), tuple(videos))


def digest(value: object) -> str:
    """SHA-256 of anything JSON-like."""
    # With sorted keys: tables that are equal may come in another order, from Parquet and from JSON.
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def answer_text(answer: object) -> str:
    """An answer as text: a string or a number that is not empty."""
    # A bool is an int to Python: True would become the answer "True", which no model writes.
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise PromptError(f"the answer is a {type(answer).__name__}, not a text or a number", "answer")
    text = "" if answer is None else str(answer)
    if not text.strip():
        raise PromptError("the answer is empty", "answer")
    return text


def chat(
    text: str | Sequence[Mapping[str, Any]], images: int, videos: int, *, system: str | None, suffix: str | None
) -> tuple[ChatMessage, ...]:
    """Chat messages whose marks match the media.

    `<image>` and `<video>` in a text become marks. Media of a kind that no mark names go first, images before videos,
    into the first message of the user. `suffix` goes on a line of its own at the end of the last message.
    """
    given: Sequence[Mapping[str, Any]] = [{"role": "user", "content": text}] if isinstance(text, str) else text
    messages = [_message(message) for message in given]
    if not messages or messages[-1]["role"] != "user":
        raise PromptError("the last message is not the user's")
    _place_media(messages, {"image": images, "video": videos})
    if not any(part["type"] != "text" or part["text"].strip() for part in messages[-1]["content"]):
        raise PromptError("the question is empty")
    if suffix:  # after the check: a suffix alone is no question
        messages[-1]["content"].append({"type": "text", "text": f"\n{suffix}"})
    if system:
        if messages[0]["role"] == "system":
            raise PromptError("the row has a system message and the recipe sets another: keep one of them")
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return tuple({"role": message["role"], "content": _joined(message["content"])} for message in messages)


def _place_media(messages: list[ChatMessage], counts: Mapping[str, int]) -> None:
    """Puts marks for the media that the texts do not name before the first words of the user."""
    parts = [part for message in messages for part in message["content"]]
    first: list[Content] = []
    for kind in MARKS:
        marks, media = sum(part["type"] == kind for part in parts), counts[kind]
        if marks and marks != media:
            raise PromptError(f"{_count(marks, f'<{kind}> mark')} for {_count(media, kind)}", "marks")
        first += [_mark(kind) for _ in range(media - marks)]  # all of them, or none
    user = next(message for message in messages if message["role"] == "user")
    user["content"][:0] = first


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _message(given: Mapping[str, Any]) -> ChatMessage:
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise PromptError(f"a message's role is {role!r}, not {', '.join(ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": _split(content)}
    if not isinstance(content, Sequence):
        raise PromptError("a message's content is neither a text nor a list of parts")
    return {"role": role, "content": [part for entry in content for part in _parts(entry)]}


def _parts(entry: Any) -> list[Content]:
    # A table gives every part the keys of all of them: those without a value say nothing.
    part = {key: value for key, value in entry.items() if value is not None} if isinstance(entry, Mapping) else {}
    if part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
        return _split(part["text"])
    if part.keys() == {"type"} and part["type"] in MARKS:
        return [_mark(part["type"])]
    raise PromptError(
        'a part of a message is neither {"type": "text", "text": ...} nor a mark {"type": "image"} or '
        '{"type": "video"}; media themselves belong in columns of their own'
    )


def _split(text: str) -> list[Content]:
    # A control token in a row would end the turn or begin another: what follows would be read as the model's own words.
    if control := re.search(r"<\|[a-zA-Z0-9_]+\|>", text):
        message = f"the text holds {control[0]}, which a tokenizer reads as a control token: remove it"
        raise PromptError(message, "control-token")
    pieces = re.split(r"<(image|video)>", text)
    parts: list[Content] = []
    for number, piece in enumerate(pieces):
        if number % 2:  # `re.split` gives texts and the marks between them by turns
            parts.append(_mark(piece))
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _joined(parts: list[Content]) -> list[Content]:
    """The same with neighbouring texts as one, so that one chat has one form and one hash."""
    joined: list[Content] = []
    for part in parts:
        before = joined[-1] if joined else None
        if part["type"] == "text" and before is not None and before["type"] == "text":
            joined[-1] = {"type": "text", "text": before["text"] + part["text"]}
        else:
            joined.append(part)
    return joined


def _mark(kind: str) -> MediaContent:
    return {"type": "image" if kind == "image" else "video"}
