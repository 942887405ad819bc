"""How often each prompt is answered rightly, and which prompts are kept for it.

A journal has the rates as they come: its first line says what was asked, each other one what came of one prompt. So
whoever is interrupted goes on, and answers to something else are not taken for these.

Left out: who asks (`trainer.evaluation.rating`), and the rows that the prompts were made of (`export`).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from adapters.errors import UserError

KEPT, NEVER, ALWAYS, OUTSIDE = "kept", "at 0 %", "at 100 %", "outside the bounds"
_BARS = 10
"""Steps from 0 to 100 % of a histogram, where there are that many answers."""


class Rated(BaseModel):
    """What came of one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: int
    """Among the prompts."""
    rate: float | None = None
    cut_off: float = 0.0
    """Share of the answers that reached the most tokens."""
    lost: Literal["unscorable", "unreadable"] | None = None
    """Why there is no rate: nobody could judge an answer, or nobody could read the row's media."""
    why: str | None = None
    """The same in the words of the reward, or of the service."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A prompt is kept whose rate lies between them."""

    above: float = 0.0
    below: float = 1.0


def pass_rate(rewards: Iterable[float | None]) -> float | None:
    """The mean of those that were judged; None where none was."""
    judged = [reward for reward in rewards if reward is not None]
    return sum(judged) / len(judged) if judged else None


def fate(one: Rated, bounds: Bounds) -> str:
    """`kept`, or why not."""
    if one.rate is None:
        return str(one.lost)
    if bounds.above < one.rate < bounds.below:
        return KEPT
    return NEVER if one.rate <= 0 else ALWAYS if one.rate >= 1 else OUTSIDE


def histogram(rates: Iterable[float], samples: int) -> list[tuple[float, int]]:
    """Each step from 0 to 1 and how many rates are nearest to it. At 0 and at 1 stand those alone that are just so."""
    steps = max(2, min(samples, _BARS))
    counts = Counter(_step(rate, steps) for rate in rates)
    return [(step / steps, counts[step]) for step in range(steps + 1)]


def _step(rate: float, steps: int) -> int:
    if 0 < rate < 1:
        return min(max(int(rate * steps + 0.5), 1), steps - 1)
    return 0 if rate <= 0 else steps


class Journal:
    """Rates on disk, appended to. The file comes to be with the first of them."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        self._asked = asked
        self.rated: dict[int, Rated] = {one.place: one for one in _read(path, asked)} if path.exists() else {}

    def add(self, several: Sequence[Rated]) -> None:
        """They outlive this process when it returns."""
        lines = [one.model_dump_json(exclude_defaults=True) for one in several]
        try:
            with self.path.open("a") as file:
                head = [] if file.tell() else [json.dumps(self._asked)]
                file.write("".join(f"{line}\n" for line in [*head, *lines]))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.rated |= {one.place: one for one in several}


def _read(path: Path, asked: Mapping[str, Any]) -> list[Rated]:
    """A last line without an end was being written when its process died: it is cut off."""
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    head, *lines = whole.splitlines() or [json.dumps(asked).encode()]
    try:
        then = cast(object, json.loads(head))
        rated = [Rated.model_validate_json(line) for line in lines]
    except ValueError:
        then, rated = None, []
    if not isinstance(then, dict):
        raise UserError(f"{path}: not what this command has left there; remove it, or take another name with --out")
    now = cast(dict[str, Any], json.loads(json.dumps(asked)))
    for key, value in cast(dict[str, Any], then).items():
        if now.get(key) != value:
            change = f"{key} was {_told(value)} and is {_told(now.get(key))}"
            raise UserError(f"{path}: answers to something else: {change}; ask the same again, or remove the file")
    return rated


def _told(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
