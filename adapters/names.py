"""What branches and revisions are called: `image`, `image@17`, and the reserved `base` and `merged`.

A name is matched by one regular expression, never normalised, and never joined to a path before it has matched: one
spelling for each branch, and nothing to escape from a folder with. Left out: whether the branch exists.
"""

import re
from dataclasses import dataclass
from typing import Self

from adapters.errors import UserError

BASE = "base"
MERGED = "merged"
RESERVED = frozenset({BASE, MERGED})

# Lower case only: on some disks `Image` and `image` are one folder.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")
# No leading zeros: `image@7` and `image@07` would be two names of one revision.
_REVISION = re.compile(r"0|[1-9][0-9]{0,8}")
_SHOWN = 100
"""Characters of a wrong name that a message shows: more than a right one has."""


@dataclass(frozen=True, order=True, slots=True)
class Ref:
    """A branch, or one revision of it. A branch alone stands for its head."""

    branch: str
    revision: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        branch, at, revision = text.partition("@")
        if not is_name(branch) or (at and not _REVISION.fullmatch(revision)):
            raise UserError(f"{shown(text)} names no adapter; take BRANCH or BRANCH@REVISION, such as image@17")
        if at and branch == BASE:
            raise UserError(f"{shown(text)}: the base has no revisions; take {BASE}")
        return cls(branch, int(revision) if at else None)

    def __str__(self) -> str:
        return self.branch if self.revision is None else f"{self.branch}@{self.revision}"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None


def is_start(text: str) -> bool:
    """Whether a branch can start from it: the base, or one revision."""
    branch, at, revision = text.partition("@")
    return text == BASE or (bool(at) and branch not in RESERVED and is_name(branch) and is_revision(revision))


def check_name(text: str) -> str:
    """The name itself; a UserError if it is none."""
    if not is_name(text):
        raise UserError(f"{shown(text)} is no name; take a lower-case letter, then at most 47 of a-z, 0-9, _ and -")
    return text


def check_branch(text: str) -> str:
    """The name of a branch that may be made: any but the reserved ones."""
    if check_name(text) in RESERVED:
        raise UserError(f"{text!r} is reserved and can be no branch; take another name")
    return text


def shown(text: str) -> str:
    """The text as a message shows it: quoted, escaped, and not 10 kB long."""
    return ascii(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
