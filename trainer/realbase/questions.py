r"""Questions in words for the real base: three capabilities, with answers of 40 to 100 tokens.

They have the parts of the miniature's questions: a count to *find*, then *arithmetic* with it, in one step at level 1
and in two at level 2. In text the count is a product in a story. In an image it is told by a row of handwritten digits,
in a video by digits that come one after another. Work is written in one of two ways, with equations or in words:

    First, the digits are 3, 7, 1, 9. The largest is 9. Then 37 + 9 = 46. The answer is \boxed{46}
    We see that the digits are 3, 7, 1, 9. The largest is 9. Now 37 plus 9 makes 46. So it is \boxed{46}

Rows of digits decide the split of a question, so that no row is shared, and it is drawn with scans of that split alone.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from trainer.miniature.capabilities.video import FRAMES_PER_MOVE
from trainer.miniature.question import Form, Frames, MiniatureCapability, Question, Scene, Split, Work, split_of
from trainer.realbase.digits import picture, scans_of

DIGITS = 4
"""Digits in a row, and in a clip. With five, a sum is written in more than 100 tokens."""
MAX_TOKENS = 112
"""Tokens of a completion: the longest work has about 100."""
TOGETHER = 24
"""Questions that the base is asked together: with eight samples of each, 2 GB of keys and values."""
NAMES = (("Anna", "She"), ("Tom", "He"), ("Maria", "She"), ("Ben", "He"), ("Sara", "She"), ("Omar", "He"))
GOODS = ("books", "coins", "cards", "shells", "stickers", "stones", "photos")
"""As many as have no divisor in common with the names: every pair of them occurs."""

Digits = tuple[int, ...]
Finding = tuple[Digits, str, int, int, Callable[[int], str]]
"""Digits, the phrase for what is to be found in them, the count, the count of a look that ends before the last digit,
and the sentence that finds either."""
Kind = Callable[[random.Random], Finding]


# ---- how they are written ----


def _story(question: Question) -> str:
    # By the start alone: a name that depended on the product would give it away.
    name, pronoun = NAMES[question.start % len(NAMES)]
    goods, (sign, _), *more = GOODS[question.start % len(GOODS)], *question.steps
    verb = "buys" if sign == "+" else "sells"
    then = "".join(f", then {'finds' if s == '+' else 'loses'} {n}" for s, n in more)
    return (
        f"{name} has {question.start} {goods}. {pronoun} {verb} {question.scene.phrase}{then}. "
        f"How many {goods} are left?"
    )


def _order(question: Question) -> str:
    (sign, _), *more = question.steps
    steps = ", then ".join([f"{_do(sign)} {question.scene.phrase}", *(f"{_do(s)} {n}" for s, n in more)])
    return f"Start with {question.start}, {steps}. What do you get?"


def _do(sign: str) -> str:
    return "add" if sign == "+" else "take away"


def _write(question: Question, work: Work) -> str:
    seen = f"the digits are {', '.join(question.scene.items)}. " if question.scene.items else ""
    finding = f"{seen}{question.scene.tell(work.count)}."
    if work.style == "plain":
        steps = " ".join(f"Then {left} {sign} {right} = {value}." for left, sign, right, value in work.steps)
        return f"First, {finding} {steps} The answer is \\boxed{{{work.answer}}}"
    words = {"+": "plus", "-": "minus"}
    steps = ", and ".join(f"{left} {words[sign]} {right} makes {value}" for left, sign, right, value in work.steps)
    return f"We see that {finding} Now {steps}. So it is \\boxed{{{work.answer}}}"


# ---- what there is to find ----


def _product(rng: random.Random) -> Scene:
    boxes, each = rng.randint(2, 5), rng.randint(3, 6)
    count = boxes * each
    # The slip of a table that is known less well. In every row of it, slips would leave few questions without any.
    short_count = count - each if each == 6 else count
    pixels, tell = partial(np.zeros, (0, 0, 0, 3), np.uint8), partial(_tell_product, boxes, each)
    return Scene(f"{boxes} boxes of {each}", count, short_count, (), pixels, tell=tell)


def _tell_product(boxes: int, each: int, count: int) -> str:
    return f"{boxes} boxes of {each} are {boxes} * {each} = {count}"


def _sum(rng: random.Random) -> Finding:
    digits = tuple(rng.choices(range(10), k=DIGITS))
    return digits, "the sum of the digits", sum(digits), sum(digits[:-1]), partial(_tell_sum, digits)


def _tell_sum(digits: Digits, count: int) -> str:
    added = digits if count == sum(digits) else digits[:-1]
    totals = np.cumsum(added).tolist()
    steps = zip(totals[:-1], added[1:], totals[1:], strict=True)
    return "For the sum, " + ", ".join(f"{before} + {digit} = {total}" for before, digit, total in steps)


def _largest(rng: random.Random) -> Finding:
    """The largest first, then the row: each from 1 to 9 is equally likely."""
    largest = rng.randint(1, 9)
    digits = _shuffled(rng, [largest, *rng.choices(range(largest + 1), k=DIGITS - 1)])
    return digits, "the largest digit", largest, max(digits[:-1]), _tell_largest


def _tell_largest(count: int) -> str:
    return f"The largest is {count}"


def _span(rng: random.Random) -> Finding:
    span = rng.randint(0, 9)
    low = rng.randint(0, 9 - span)
    digits = _shuffled(rng, [low, low + span, *rng.choices(range(low, low + span + 1), k=DIGITS - 2)])
    tell = partial(_tell_span, low + span, low)
    return digits, "the largest minus the smallest digit", span, span, tell


def _tell_span(high: int, low: int, count: int) -> str:
    return f"The largest is {high} and the smallest {low}, which is {count} apart"


def _how_many(rng: random.Random) -> Finding:
    kind, count = rng.randint(0, 9), rng.randint(0, DIGITS)
    different = [digit for digit in range(10) if digit != kind]
    digits = _shuffled(rng, [kind] * count + rng.choices(different, k=DIGITS - count))
    tell = partial(_tell_how_many, digits, kind)
    return digits, f"the number of {kind}s", count, count - (digits[-1] == kind), tell


def _tell_how_many(digits: Digits, kind: int, count: int) -> str:
    counted = digits if count == digits.count(kind) else digits[:-1]
    totals = np.cumsum([digit == kind for digit in counted]).tolist()
    steps = zip(counted, totals, strict=True)
    # A count without its steps is hardly ever learnt.
    return f"Counting {kind}s, " + ", ".join(f"{d} {'makes' if d == kind else 'leaves'} {total}" for d, total in steps)


def _beside(rng: random.Random) -> Finding:
    """The digit after or before another, which is there once."""
    digits, side = _shuffled(rng, range(10))[:DIGITS], rng.choice(("after", "before"))
    position = rng.randrange(DIGITS - 1)
    key, count = digits[position : position + 2] if side == "after" else digits[position : position + 2][::-1]
    return digits, f"the digit {side} the {key}", count, count, partial(_tell_beside, side, key)


def _tell_beside(side: str, key: int, count: int) -> str:
    return f"{side.capitalize()} the {key} comes the {count}"


def _change(rng: random.Random) -> Finding:
    change = rng.randint(0, 9)
    low = rng.randint(0, 9 - change)
    first, last = _shuffled(rng, [low, low + change])
    # Often shown twice at the end, so that a look that ends too early is as good.
    digits = (first, rng.randint(0, 9), rng.choice((last, last, rng.randint(0, 9))), last)
    phrase = "the change from the first to the last digit"
    return digits, phrase, change, abs(digits[-2] - first), partial(_tell_change, digits)


def _tell_change(digits: Digits, count: int) -> str:
    last = digits[-1] if count == abs(digits[-1] - digits[0]) else digits[-2]
    return f"From {digits[0]} to {last} it changes by {count}"


def _shuffled(rng: random.Random, digits: Sequence[int]) -> Digits:
    return tuple(rng.sample(digits, len(digits)))


# ---- how they are shown ----


def _seen(name: str, kinds: Sequence[Kind], rng: random.Random) -> Scene:
    digits, phrase, count, short_count, tell = rng.choice(kinds)(rng)
    items = tuple(map(str, digits))
    # By the row alone, and before anything is drawn: scans and rows have one split.
    split = split_of(hashlib.sha256(f"{name} {' '.join(items)}".encode()).hexdigest())
    pixels = partial(_render, name, split, rng.getrandbits(32), digits)
    return Scene(phrase, count, short_count, items, pixels, split, tell)


def _render(name: str, split: Split, seed: int, digits: Digits) -> Frames:
    rng = np.random.default_rng(seed)
    numbers = scans_of(digits, split, rng)
    if name == "image":
        return picture(numbers, rng)[None]
    return np.repeat(np.stack([picture([number], rng) for number in numbers]), FRAMES_PER_MOVE, axis=0)


CAPABILITIES = {
    "text": MiniatureCapability(
        name="text",
        media="none",
        style="plain",
        starts=range(31, 80),  # never below 0: the largest product is 30
        signs=("+-", "+-"),
        words=(),
        scene=_product,
        form=Form(_story, _write),
        max_tokens=MAX_TOKENS,
        together=TOGETHER,
    ),
    "image": MiniatureCapability(
        name="image",
        media="image",
        style="arrow",
        starts=range(20, 80),
        signs=("+", "+"),
        words=(),
        scene=partial(_seen, "image", (_sum, _largest, _span, _how_many)),
        form=Form(_order, _write),
        max_tokens=MAX_TOKENS,
        together=TOGETHER,
    ),
    "video": MiniatureCapability(
        name="video",
        media="video",
        style="arrow",
        starts=range(45, 95),  # never below 0: the largest sum is 36
        signs=("-", "-"),
        words=(),
        scene=partial(_seen, "video", (_sum, _beside, _beside, _change)),
        form=Form(_order, _write),
        max_tokens=MAX_TOKENS,
        together=TOGETHER,
    ),
}
"""The real base's capabilities by name."""
