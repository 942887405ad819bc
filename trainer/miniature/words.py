"""Which of the miniature's capabilities a base has words for.

A base of the miniature has a token for each word of the capabilities that it was built with, and spells out any other
word that it reads and has never seen so. Left out: any other model, which was taught to read; and a base that has the
words of a capability from others.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from trainer.miniature.capabilities import capability
from trainer.miniature.question import CONNECTOR


def without_words(base: Path, names: Iterable[str]) -> list[str]:
    """The capabilities whose words are no tokens of the miniature in this folder."""
    needed = {name: capability(name).words for name in names}
    tokenizer = base / "tokenizer.json"
    # None: not the miniature, whose tokenizer is always in this file.
    tokens = json.loads(tokenizer.read_text())["added_tokens"] if tokenizer.exists() else []
    known = {token["content"] for token in tokens}
    is_miniature = known.issuperset(CONNECTOR)  # no other model has a token for each of its styles
    return [name for name, words in needed.items() if is_miniature and not known.issuperset(words)]


def building(names: Iterable[str], out: str) -> str:
    """The command that makes a base with these capabilities."""
    return f"coevo base build --capabilities {' '.join(names)} --out {out}"
