"""Questions: disjoint splits, right answers, derivations that say what they should."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.miniature.blind import best_constant, best_guess
from trainer.miniature.capabilities import CAPABILITIES, capability
from trainer.miniature.question import (
    LEVELS,
    SPLIT_SHARES,
    Question,
    calculate,
    draw,
    miscalculate,
    questions,
    reliable_style,
    slip_rate,
)
from trainer.rewards.mathematics import math_reward

NAMES = sorted(CAPABILITIES)
SPLITS = [split for split, _ in SPLIT_SHARES]


def take(name: str, split: str, count: int, level: int | None = None, seed: int = 0) -> list[Question]:
    return list(itertools.islice(questions(capability(name), split, seed, level), count))


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_question(name: str) -> None:
    digests = {split: {question.digest for question in take(name, split, 600)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not digests[one] & digests[other]


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
    for one, other in zip(take(name, "train", 20), take(name, "train", 20), strict=True):
        assert one.text == other.text
        assert (one.scene.render() == other.scene.render()).all()
    assert [q.text for q in take(name, "train", 20)] != [q.text for q in take(name, "train", 20, seed=1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_careful_work_is_right_and_the_math_reward_says_so(name: str, level: int) -> None:
    for question in take(name, "test", 100, level):
        assert len(question.steps) == level
        for style in ("plain", "arrow"):
            assert math_reward(question.derivation(style, lambda: False), question.answer) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_every_slip_shows_in_the_derivation_and_most_of_them_in_the_answer(name: str) -> None:
    slipped = wrong = 0
    for question in take(name, "test", 300):
        careful, careless = (question.derivation("plain", lambda slips=slips: slips) for slips in (False, True))
        if careful != careless:
            slipped += 1
            wrong += math_reward(careless, question.answer) == 0.0
    assert slipped > 100
    assert wrong > 0.95 * slipped


@given(left=st.integers(10, 99), right=st.integers(0, 40), sign=st.sampled_from("+-"))
def test_the_slip_is_a_dropped_carry_or_a_smaller_digit_from_the_larger(left: int, right: int, sign: str) -> None:
    easy = left % 10 + right % 10 < 10 if sign == "+" else left % 10 >= right % 10
    assert (miscalculate(left, sign, right) == calculate(left, sign, right)) == easy
    if sign == "+" and not easy:
        assert miscalculate(left, sign, right) == left + right - 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", LEVELS)
def test_nobody_scores_more_than_a_fifth_without_looking(name: str, level: int) -> None:
    known, asked = take(name, "train", 3000, level), take(name, "test", 1500, level)
    assert best_guess(known, asked) <= 0.20
    assert best_constant(known, asked) <= 0.20


@pytest.mark.parametrize("name", ["image", "video"])
def test_every_count_is_equally_frequent(name: str) -> None:
    counts = [question.scene.count for question in take(name, "train", 3000)]
    shares = [counts.count(value) / len(counts) for value in set(counts)]
    assert max(shares) - min(shares) < 0.05


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
    with pytest.raises(ValueError, match="no miniature capability 'taste': there are image, text, video"):
        capability("taste")
