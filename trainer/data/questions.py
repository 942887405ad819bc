"""The question and the right answer of a row, out of cells that hold more than these.

A solution whose end is the answer, options in columns of their own, a chat that ends with the answer: people's rows are
taken as they are. Options become lines behind the question, a letter each, and the answer becomes a letter.

Left out: rows that hold an option's text under a number of another table.
"""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

from trainer.data.prompts import PromptError

AnswerAs = Literal["letter", "index", "number", "text"]
"""The form of an answer beside options. An index counts from 0, a number from 1."""
MOST_OPTIONS = len(string.ascii_uppercase)


def split_chat(cell: Any) -> tuple[Any, Any]:
    """A chat without its last message, and the text of that message, if it is the assistant's; else the chat and
    None."""
    if isinstance(cell, str) or not isinstance(cell, Sequence) or not cell:
        return cell, None
    *before, last = cast(Sequence[Any], cell)
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return cell, None
    return before, _text_of(cast(Mapping[str, Any], last).get("content"))


def _text_of(content: Any) -> Any:
    """A message's content as one text, where it is a list of parts."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) else None for part in cast(Sequence[Any], content)]
    return "".join(part or "" for part in parts)


def matched_answer(cell: Any, pattern: str) -> str:
    """The group of the pattern's last match: a solution ends with its answer, and may hold the same form before."""
    matches = re.findall(pattern, cell) if isinstance(cell, str) else []
    if not matches:
        shown = f"...{cell[-40:]!r}" if isinstance(cell, str) else f"a {type(cell).__name__}"
        raise PromptError(f"answer_pattern {pattern!r} matches nowhere in {shown}; mend it", "answer-pattern")
    return str(matches[-1]).strip()


def options_of(cells: Sequence[Any]) -> list[str]:
    """The options in some columns; a list counts as so many, and what is empty at the end as none."""
    texts: list[str] = []
    for cell in cells:
        entries = cast(Sequence[Any], cell) if isinstance(cell, list | tuple) else [cell]
        texts += ["" if entry is None else str(entry).strip() for entry in entries]
    while texts and not texts[-1]:  # a table has as many columns as its longest row has options
        texts.pop()
    if not 2 <= len(texts) <= MOST_OPTIONS:
        raise PromptError(f"{len(texts)} options; a question has 2 to {MOST_OPTIONS}", "options")
    if "" in texts:
        raise PromptError(f"option {string.ascii_uppercase[texts.index('')]} is empty", "options")
    return texts


def with_options(text: Any, options: Sequence[str]) -> Any:
    """The question with its options behind it; of a chat, behind its last message."""
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    if isinstance(text, str):
        return f"{text}\n{lines}"
    if not isinstance(text, Sequence) or not text or not isinstance(text[-1], Mapping):
        return text  # no chat: told by who reads it
    *before, last = cast(Sequence[Any], text)
    message = cast(Mapping[str, Any], last)
    content = cast(Sequence[Any] | None, message.get("content"))
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])
    return [*before, {**message, "content": [*parts, {"type": "text", "text": f"\n{lines}"}]}]


def answer_letter(cell: Any, options: Sequence[str], form: AnswerAs | None) -> str:
    """The letter of the right option. An answer that can be read as two of them is refused: a wrong one would be
    trained on, and nobody would see it."""
    # Strings of digits are left to `answer_as`: some tables count from 0, others from 1, and both look right.
    forms: Sequence[AnswerAs] = [form] if form else ["letter", "text", *(["index"] if _is_number(cell) else [])]
    places = {position for reading in forms for position in _places(cell, options, reading)}
    if len(places) == 1:
        return string.ascii_uppercase[places.pop()]
    known = ", ".join(map(repr, options))
    if places:
        raise PromptError(f"answer {cell!r} means more than one of the options {known}; set answer_as", "options")
    how = f"no {form} of" if form else "neither a letter nor the text of"
    raise PromptError(
        f"answer {cell!r} is {how} the options {known}; mend it, or set "
        'answer_as = "index" if it counts from 0, "number" if from 1',
        "options",
    )


def _places(cell: Any, options: Sequence[str], form: AnswerAs) -> Iterator[int]:
    """The indices of the options that an answer means when it is read in this form."""
    text = "" if cell is None else str(cell).strip()
    if form == "text":
        yield from (index for index, option in enumerate(options) if option == text)
    elif form == "letter":
        letter = text.strip("().").upper()
        if len(letter) == 1 and letter in string.ascii_uppercase[: len(options)]:
            yield string.ascii_uppercase.index(letter)
    elif re.fullmatch(r"\d+(\.0)?", text):  # a table with gaps makes floats of its integers
        index = int(float(text)) - (form == "number")
        if 0 <= index < len(options):
            yield index


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)
