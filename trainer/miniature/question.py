"""What the miniature asks: one form of question for every capability, its answer, and derivations of it.

A question is a number and something to find out, `37+red?`: *find* the count (in a product, an image, a video),
then do *arithmetic* with it, one step at level 1 and two at level 2. What is found differs between capabilities; the
arithmetic is the skill they share. A derivation writes the work out:

    arrowredbluegreenredredblue;red>3;37+3>40\\boxed{40}

in one of two styles, `plain` (with `=`) and `arrow` (with `>`). The base learns from derivations that *slip*: they
forget the last item, drop a carry, or take the smaller digit from the larger. How often depends on the style, and
`conflict` sets in which style a capability is reliable: at 0 `plain` is everywhere, at 1 each capability has its own.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
Style = Literal["plain", "arrow"]
Media = Literal["none", "image", "video"]
Frames = NDArray[np.uint8]  # [F, H, W, C]: no frame for text, one for an image

LEVELS = (1, 2)
CONNECTOR: dict[Style, str] = {"plain": "=", "arrow": ">"}
SPLIT_SHARES: tuple[tuple[Split, int], ...] = (("train", 70), ("validation", 10), ("test", 20))  # in percent


@dataclass(frozen=True, slots=True)
class Scene:
    """The part of a question that there is to find out, and that belongs to one capability."""

    phrase: str
    """The words of the question for what is to be found: `red`, `right`, `3*4`."""
    count: int
    """The count that a careful look finds."""
    short_count: int
    """The count that a look finds which stops before the last item."""
    items: tuple[str, ...]
    """The items that are written down before counting; empty where there is nothing to look at."""
    render: Callable[[], Frames]
    """Draws the pixels, the same at every call."""
    split: Split | None = None
    """The split of what there is to see, where that decides alone; None: the whole question decides."""
    tell: Callable[[int], str] = str
    """Writes how a count is found, where the form has words for it."""


@dataclass(frozen=True, slots=True)
class Work:
    """Worked steps to an answer, slips included."""

    style: Style
    count: int
    steps: tuple[tuple[int, str, int, int], ...]
    """The number before, the sign, the operand, and the number that comes of them."""

    @property
    def answer(self) -> int:
        return self.steps[-1][-1]


@dataclass(frozen=True, slots=True)
class Form:
    """The way questions and their work are written."""

    ask: Callable[["Question"], str]
    write: Callable[["Question", Work], str]


def _ask_tersely(question: "Question") -> str:
    (sign, _), *more = question.steps
    return f"{question.start}{sign}{question.scene.phrase}" + "".join(f"{s}{n}" for s, n in more) + "?"


def _write_tersely(question: "Question", work: Work) -> str:
    scene, connector = question.scene, CONNECTOR[work.style]
    seen = f"{''.join(scene.items)};" if scene.items else ""
    steps = "".join(f"{sign}{operand}{connector}{value}" for _, sign, operand, value in work.steps)
    finding = f"{scene.phrase}{connector}{work.count};"
    return f"{work.style}{seen}{finding}{question.start}{steps}\\boxed{{{work.answer}}}"


TERSE = Form(_ask_tersely, _write_tersely)


@dataclass(frozen=True, slots=True)
class MiniatureCapability:
    """A toy capability: how its scenes arise and which arithmetic goes with them."""

    name: str
    media: Media
    style: Style
    """The style in which it is reliable at full conflict."""
    starts: range
    """The first number."""
    signs: tuple[str, ...]
    """Signs of the two steps: one is drawn from the first string, one from the second."""
    words: tuple[str, ...]
    """Words that are one token each."""
    scene: Callable[[random.Random], Scene]
    form: Form = TERSE
    max_tokens: int = 48
    """Tokens of a completion, longer than any derivation: a base that never ends is cut here and wrong."""
    together: int = 128
    """Questions that a base is asked together; the samples of a batch have one stream of chance, so it changes
    answers."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its scene. `steps` are the signed operands; the first is the count."""

    capability: MiniatureCapability
    level: int
    start: int
    steps: tuple[tuple[str, int], ...]
    scene: Scene

    @property
    def text(self) -> str:
        return self.capability.form.ask(self)

    @property
    def answer(self) -> str:
        return str(self.answer_for(self.scene.count))

    def answer_for(self, count: int) -> int:
        """The right answer if the count were `count`."""
        (sign, _), *more = self.steps
        value = calculate(self.start, sign, count)
        for s, n in more:
            value = calculate(value, s, n)
        return value

    @property
    def digest(self) -> str:
        """Identity of the question, pixels aside (they are jittered): what is asked, and what there is to see."""
        identity = f"{self.capability.name} {self.text} {' '.join(self.scene.items)}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def split(self) -> Split:
        """The one split that this question can be in."""
        # By its digest, not by a draw: the same question falls into the same split at any seed.
        return self.scene.split or split_of(self.digest)

    def derivation(self, style: Style, slips: Callable[[], bool]) -> str:
        """The written-out work. `slips` is asked at each point where a slip would show."""
        scene, value = self.scene, self.start
        # `slips` draws from a stream of chance: it is called only where a slip would change what is written.
        count = scene.short_count if scene.short_count != scene.count and slips() else scene.count
        steps: list[tuple[int, str, int, int]] = []
        for sign, operand in ((self.steps[0][0], count), *self.steps[1:]):
            right, wrong = calculate(value, sign, operand), miscalculate(value, sign, operand)
            after = wrong if wrong != right and slips() else right
            steps.append((value, sign, operand, after))
            value = after
        return self.capability.form.write(self, Work(style, count, tuple(steps)))


def split_of(digest: str) -> Split:
    """The split that a hash in hexadecimal falls into."""
    percent = int(digest[:8], 16) % 100
    for split, share in SPLIT_SHARES:
        if percent < share:
            return split
        percent -= share
    raise AssertionError("shares add up to 100")


def calculate(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right


def miscalculate(left: int, sign: str, right: int) -> int:
    """The slip: a dropped carry, or the smaller digit taken from the larger. Right where there is nothing to carry."""
    if sign == "+":
        return (left // 10 + right // 10) * 10 + (left % 10 + right % 10) % 10
    return (left // 10 - right // 10) * 10 + abs(left % 10 - right % 10)


def draw(capability: MiniatureCapability, level: int, rng: random.Random) -> Question:
    """A question of any split. Everything is drawn independently, so that nothing tells the count but the scene."""
    # The order of the draws is part of what the shipped base has learnt: another gives other questions for a seed.
    scene = capability.scene(rng)
    first, second = (rng.choice(signs) for signs in capability.signs)
    if len(capability.signs[0]) > 1:  # both signs: the second step undoes the first one's direction
        second = "-" if first == "+" else "+"
    steps = ((first, scene.count), (second, rng.randint(1, 5)))
    return Question(capability, level, rng.choice(capability.starts), steps[:level], scene)


def questions(capability: MiniatureCapability, split: Split, seed: int, level: int | None = None) -> Iterator[Question]:
    """An endless stream of a split's questions, both levels in turn unless one is asked for."""
    # Seeded with a text, which Python turns into the same stream on every machine and with any hash seed.
    rng = random.Random(f"{capability.name} {split} {level} {seed}")
    turn = 0
    while True:  # about every tenth draw falls into `validation`; the others are drawn and left
        question = draw(capability, level or LEVELS[turn % len(LEVELS)], rng)
        if question.split == split:
            turn += 1
            yield question


def other_style(style: Style) -> Style:
    return "arrow" if style == "plain" else "plain"


def reliable_style(capability: MiniatureCapability, conflict: float) -> Style:
    return capability.style if conflict >= 0.5 else "plain"


def slip_rate(capability: MiniatureCapability, style: Style, conflict: float, careful: float, careless: float) -> float:
    """The share of slips in a derivation in `style`: `careful` in the reliable style, `careless` in the other.

    A capability whose own style is `arrow` moves from one to the other as `conflict` goes from 0 to 1; at 0.5 its
    two styles are equally good.
    """
    moved = conflict if capability.style == "arrow" else 0.0
    plain, arrow = careful + moved * (careless - careful), careless - moved * (careless - careful)
    return plain if style == "plain" else arrow
