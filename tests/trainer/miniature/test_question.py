"""Questions: disjoint splits, right answers, derivations that say what they should."""

import hashlib
import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.miniature.blind import best_constant, best_guess
from trainer.miniature.capabilities import CAPABILITIES, capability
from trainer.miniature.drawing import BACKGROUND, CELL, COLOURS
from trainer.miniature.question import (
    LEVELS,
    SPLIT_SHARES,
    Question,
    Split,
    calculate,
    draw,
    miscalculate,
    questions,
    reliable_style,
    slip_rate,
)
from trainer.rewards.mathematics import math_reward

NAMES = sorted(CAPABILITIES)
LOOKING = [name for name in NAMES if CAPABILITIES[name].media != "none"]
SPLITS: list[Split] = [split for split, _ in SPLIT_SHARES]
Pixels = NDArray[np.uint8]


def take(name: str, split: Split, count: int, level: int | None = None, seed: int = 0) -> list[Question]:
    return list(itertools.islice(questions(capability(name), split, seed, level), count))


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_question(name: str) -> None:
    digests = {split: {question.digest for question in take(name, split, 600)} for split in SPLITS}
    for left, right in itertools.combinations(SPLITS, 2):
        assert not digests[left] & digests[right]


def test_a_digest_tells_questions_and_scenes_apart_but_not_pixels() -> None:
    rng = random.Random(0)
    drawn = [draw(capability("image"), 1, rng) for _ in range(2000)]
    seen: dict[str, tuple[object, ...]] = {}
    for question in drawn:
        identity = (question.text, question.scene.items)
        assert seen.setdefault(question.digest, identity) == identity
    assert len(seen) == len({(question.text, question.scene.items) for question in drawn})


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_questions_and_pixels(name: str) -> None:
    for question, again in zip(take(name, "train", 20), take(name, "train", 20), strict=True):
        assert question.text == again.text
        assert (question.scene.render() == again.scene.render()).all()
    assert [q.text for q in take(name, "train", 20)] != [q.text for q in take(name, "train", 20, seed=1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_careful_work_is_right_and_the_math_reward_says_so(name: str, level: int) -> None:
    for question in take(name, "test", 100, level):
        assert len(question.steps) == level
        for style in ("plain", "arrow"):
            assert math_reward(question.derivation(style, lambda: False), question.answer) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_slips_show_in_the_derivation_and_mostly_in_the_answer(name: str) -> None:
    slipped = wrong = 0
    for question in take(name, "test", 300):
        careful, careless = (question.derivation("plain", lambda slips=slips: slips) for slips in (False, True))
        if careful != careless:
            slipped += 1
            wrong += math_reward(careless, question.answer) == 0.0
    assert slipped > 100
    assert wrong > 0.95 * slipped


@given(left=st.integers(10, 99), right=st.integers(0, 40), sign=st.sampled_from("+-"))
def test_a_slip_drops_a_carry_or_subtracts_the_smaller_digit(left: int, right: int, sign: str) -> None:
    easy = left % 10 + right % 10 < 10 if sign == "+" else left % 10 >= right % 10
    assert (miscalculate(left, sign, right) == calculate(left, sign, right)) == easy
    if sign == "+" and not easy:
        assert miscalculate(left, sign, right) == left + right - 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_nobody_scores_more_than_a_fifth_without_looking(name: str, level: int) -> None:
    known, unseen = take(name, "train", 3000, level), take(name, "test", 1500, level)
    assert best_guess(known, unseen) <= 0.20
    assert best_constant(known, unseen) <= 0.20


@pytest.mark.parametrize("name", LOOKING)
def test_every_count_is_equally_frequent(name: str) -> None:
    counts = [question.scene.count for question in take(name, "train", 3000)]
    shares = [counts.count(value) / len(counts) for value in set(counts)]
    assert max(shares) - min(shares) < 0.05


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("text", "9d043843cbc76ae6"),
        ("image", "6622834fdfdcd385"),
        ("video", "46163414b55279d4"),
    ],
)
def test_what_the_shipped_base_has_learnt_is_still_asked(name: str, digest: str) -> None:
    """Questions, splits and pixels: a change of them would leave the shipped base behind without a word."""
    content = hashlib.sha256()
    for split in SPLITS:
        for question in take(name, split, 100):
            content.update(f"{question.text} {question.answer} {question.scene.items}".encode())
            content.update(question.scene.render().tobytes())
    assert content.hexdigest()[:16] == digest


def drawn(pixels: Pixels) -> tuple[str, str, tuple[bool, bool]]:
    """The shape in a cell, by its area; its colour; and the corner that it is nearest to."""
    covered = (pixels != BACKGROUND).any(axis=2)
    shape = {400: "square", 196: "square", 316: "disc", 200: "triangle"}[int(covered.sum())]
    mean = pixels[covered].mean(axis=0)
    colour = min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))
    down, right = np.argwhere(covered).mean(axis=0) > CELL / 2
    return shape, colour, (bool(down), bool(right))


def test_colours_of_shapes_and_corners_of_flashes_tell_nothing() -> None:
    shapes, flashes = Counter[tuple[object, ...]](), Counter[tuple[object, ...]]()
    for of_shapes, of_order in zip(take("shapes", "train", 300), take("order", "train", 300), strict=True):
        cells = of_shapes.scene.render().reshape(2, CELL, 3, CELL, 3).swapaxes(1, 2).reshape(6, CELL, CELL, 3)
        frames = of_order.scene.render()[::2]
        seen, flashed = [[drawn(pixels) for pixels in pictures] for pictures in (cells, frames)]
        assert [shape for shape, _, _ in seen] == list(of_shapes.scene.items)
        assert [colour for _, colour, _ in flashed] == list(of_order.scene.items)
        shapes.update((shape, colour) for shape, colour, _ in seen)
        flashes.update((colour, corner) for _, colour, corner in flashed)
    for pairs, kinds in ((shapes, 3 * 3), (flashes, 3 * 4)):
        assert len(pairs) == kinds
        assert all(abs(count / pairs.total() - 1 / kinds) < 0.03 for count in pairs.values())


def test_order_counts_flashes_before_or_after_the_only_one_of_its_colour() -> None:
    for question in take("order", "train", 500):
        scene = question.scene
        side = "before" if scene.phrase.startswith("before") else "after"
        key = scene.phrase.removeprefix(side)
        position = scene.items.index(key)
        assert scene.items.count(key) == 1
        assert scene.count == (position if side == "before" else len(scene.items) - 1 - position)
        seen = scene.items[:-1]
        short = seen.index(key) if key in seen else len(seen)
        assert scene.short_count == (short if side == "before" else max(0, len(seen) - 1 - short))


def test_levels_alternate_unless_one_is_asked_for() -> None:
    assert [question.level for question in take("text", "train", 6)] == [1, 2, 1, 2, 1, 2]


def test_conflict_moves_a_capability_from_the_common_style_to_its_own() -> None:
    text, image = capability("text"), capability("image")
    assert (text.style, image.style) == ("plain", "arrow")
    for conflict in (0.0, 0.3, 0.5, 0.8, 1.0):
        plain, arrow = (slip_rate(image, style, conflict, 0.2, 0.8) for style in ("plain", "arrow"))
        assert plain == pytest.approx(0.2 + 0.6 * conflict)
        assert arrow == pytest.approx(0.8 - 0.6 * conflict)
        assert slip_rate(text, "plain", conflict, 0.2, 0.8) == pytest.approx(0.2)
    assert reliable_style(image, 0.0) == reliable_style(text, 1.0) == "plain"
    assert reliable_style(image, 1.0) == "arrow"


def test_an_unknown_capability_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="no miniature capability 'taste': there are image, order, shapes, text, video"
    ):
        capability("taste")
