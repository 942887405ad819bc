"""The real base's questions: right answers, slips, splits, and nothing to be scored without looking."""

import itertools
import random
import re

import numpy as np
import pytest

from trainer.miniature.blind import best_constant, best_guess, swapped
from trainer.miniature.question import CONNECTOR, LEVELS, SPLIT_SHARES, Question, Split, questions
from trainer.realbase.digits import CELL, of_split, scans, scans_of
from trainer.realbase.questions import CAPABILITIES, DIGITS
from trainer.rewards import exact_reward

NAMES = sorted(CAPABILITIES)
LOOKING = ["image", "video"]


def take(name: str, split: Split, count: int, level: int | None = None) -> list[Question]:
    return list(itertools.islice(questions(CAPABILITIES[name], split, 0, level), count))


@pytest.mark.parametrize("name", NAMES)
def test_work_without_slips_ends_with_the_right_answer(name: str) -> None:
    for question in take(name, "train", 200):
        for style in CONNECTOR:
            assert exact_reward(question.derivation(style, lambda: False), question.answer) == 1.0
        assert int(question.answer) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_a_slip_is_written_and_leads_to_another_answer(name: str) -> None:
    drawn = take(name, "train", 300)
    wrong = [
        question for question in drawn if not exact_reward(question.derivation("plain", lambda: True), question.answer)
    ]
    # Enough questions of either sort: slips are to matter, and a base that always slips is to answer some rightly.
    assert 0.4 <= len(wrong) / len(drawn) <= 0.8
    for question in wrong:
        assert question.derivation("plain", lambda: True) != question.derivation("plain", lambda: False)


def test_the_two_ways_of_working_differ_from_the_first_word() -> None:
    for name in NAMES:
        (question,) = take(name, "train", 1)
        plain, arrow = (question.derivation(style, lambda: False) for style in CONNECTOR)
        assert plain.startswith("First, ")
        assert arrow.startswith("We see that ")


def test_a_question_and_its_work_in_full() -> None:
    (question,) = take("image", "train", 1, level=2)
    assert question.text == "Start with 30, add the number of 8s, then add 1. What do you get?"
    assert question.derivation("plain", lambda: False) == (
        "First, the digits are 6, 7, 3, 1. Counting 8s, 6 leaves 0, 7 leaves 0, 3 leaves 0, 1 leaves 0. "
        "Then 30 + 0 = 30. Then 30 + 1 = 31. The answer is \\boxed{31}"
    )
    (story,) = take("text", "train", 1, level=2)
    assert story.text == "Sara has 70 books. She buys 3 boxes of 6, then loses 2. How many books are left?"
    assert story.derivation("arrow", lambda: False) == (
        "We see that 3 boxes of 6 are 3 * 6 = 18. Now 70 plus 18 makes 88, and 88 minus 2 makes 86. "
        "So it is \\boxed{86}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_question_and_no_row_of_digits(name: str) -> None:
    seen: dict[object, Split] = {}
    for split, _ in SPLIT_SHARES:
        for question in take(name, split, 300):
            assert question.split == split
            assert seen.setdefault(question.scene.items or question.text, split) == split


@pytest.mark.parametrize("split", [split for split, _ in SPLIT_SHARES])
def test_digits_are_shown_by_scans_of_the_questions_split(split: Split) -> None:
    digits = random.Random(0).choices(range(10), k=40)
    numbers = scans_of(digits, split, np.random.default_rng(0))
    assert set(numbers) <= set(of_split(split).tolist())
    assert scans()[1][numbers].tolist() == digits


def test_pixels_are_the_same_at_every_call_and_others_elsewhere() -> None:
    for name, shape in (("image", (1, CELL, DIGITS * CELL, 3)), ("video", (2 * DIGITS, CELL, CELL, 3))):
        question, following = take(name, "test", 2)
        frames = question.scene.render()
        assert frames.shape == shape
        assert np.array_equal(frames, question.scene.render())
        shown, _ = swapped([question, following])
        assert np.array_equal(shown.scene.render(), following.scene.render())
        assert not np.array_equal(shown.scene.render(), frames)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_scores_without_looking(name: str) -> None:
    for level in LEVELS:
        known, unseen = take(name, "train", 2000, level), take(name, "test", 1000, level)
        assert best_constant(known, unseen) <= 0.1
        assert best_guess(known, unseen) <= (0.25 if name == "text" else 0.2)


@pytest.mark.parametrize("name", LOOKING)
def test_every_kind_of_question_is_asked_often(name: str) -> None:
    kinds = {re.sub(r" \d.*", "", question.scene.phrase) for question in take(name, "train", 200)}
    assert (
        kinds
        == {
            "image": {
                "the sum of the digits",
                "the largest digit",
                "the largest minus the smallest digit",
                "the number of",
            },
            "video": {
                "the sum of the digits",
                "the digit after the",
                "the digit before the",
                "the change from the first to the last digit",
            },
        }[name]
    )
