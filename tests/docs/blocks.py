"""The fenced blocks of README and docs, each with what the comment before it says about it.

A block is run as it is printed. A comment in the line before it, which no reader sees, says otherwise:

    <!-- docs: needs docker -->         not run, but listed with its reason; so is a block that is `shown, WHY`
    <!-- docs: minutes -->              run by `make soak`, and listed by `make test`
    <!-- docs: starts the service -->   the command of the service that all pages share
    <!-- docs: asks the service -->     run beside that service
    <!-- docs: output -->               what the block before it prints; `...` stands for anything
    <!-- docs: file PATH -->            a file of the reader's: written, then read or run
    <!-- docs: part of a recipe -->     keys that are laid over the miniature's
    <!-- docs: part of PATH -->         lines of a file of the sources, word by word
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("sh", "console", "python", "toml", "json", "yaml", "text")
MARKERS = re.compile(
    r"needs .+|shown, .+|minutes|(starts|asks) the service|output|file [\w./-]+|part of (a recipe|[\w./-]+)|"
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- docs: (.+?) -->\s*\Z")
Tier = Literal["unit", "engine", "soak"]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page, without its fences. `marker` is empty where nothing is said about it."""

    page: str
    line: int
    language: str
    marker: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why `make test` does not run it."""
        if self.marker.startswith(("needs ", "shown, ")):
            return self.marker
        return "minutes: make soak runs it" if self.marker == "minutes" else None

    @property
    def tier(self) -> Tier | None:
        """The tier that runs it first; None where none does."""
        if self.marker == "minutes":
            return "soak"
        if self.reason is not None:
            return None
        return "engine" if self.marker.endswith("the service") else "unit"

    def problems(self) -> list[str]:
        """What its page has to mend before it can be run."""
        unknown = [] if self.language in LANGUAGES else [f"no language {self.language!r}; take {', '.join(LANGUAGES)}"]
        if MARKERS.fullmatch(self.marker) is None:
            unknown.append(f"no marker {self.marker!r}; tests/docs/blocks.py has them")
        if self.language == "text" and self.marker == "":
            unknown.append("say whose `output` it is, or why it is `shown`")
        return unknown


def blocks_of(page: str, text: str) -> list[Block]:
    """All of a page, from top to bottom. `line` is that of the opening fence."""
    blocks: list[Block] = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        marker = MARKER.search(before)
        content = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        line = before.count("\n") + 1
        blocks.append(Block(page, line, match["language"], marker[1] if marker else "", content))
    return blocks


def all_blocks() -> dict[str, list[Block]]:
    """The blocks of each page, by its path."""
    return {
        name: blocks_of(name, path.read_text()) for path in PAGES for name in [str(path.relative_to(ROOT))]
    }  # fmt: skip
