from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rewards.answers import boxes, choice_letter, is_boxed_once, last_box, last_quantity, only_quantity

# Text in which boxes, braces, digits and letters meet more often than by chance.
LATEX = st.lists(
    st.sampled_from(
        [r"\boxed{", "}", "{", r"\frac", r"\{", r"\}", "\\", " ", "1,000", "3", "/", "%", "(B)", "A", "-", "$"]
    )
    | st.text(max_size=3),
    max_size=30,
).map("".join)
BALANCED = st.recursive(st.sampled_from(["x", "1", r"\{", r"\}", " "]), lambda inner: inner.map(lambda s: f"{{{s}}}"))


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{36}", "36"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed {36}", "36"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x : x>0\right.}", r"\left\{x : x>0\right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"} \boxed{7}", "7"),
        (r"\boxed{}", ""),
        ("\\boxed{a\nb}", "a\nb"),
        (r"\boxed{\frac{1}{2}", None),
        ("boxed{3}", None),
        ("36", None),
        ("", None),
    ],
)
def test_the_last_closed_box_is_the_answer(text: str, box: str | None) -> None:
    assert last_box(text) == box


@given(before=LATEX.filter(lambda text: not text.endswith("\\")), content=BALANCED)
def test_whatever_stands_before_the_last_box_is_found_as_it_was_written(before: str, content: str) -> None:
    assert last_box(f"{before}\\boxed{{{content}}}") == content


@given(LATEX)
def test_no_more_boxes_are_closed_than_opened(text: str) -> None:
    closed, num_opened = boxes(text)
    assert len(closed) <= num_opened


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        (r"so \boxed{36}", True),
        (r"so \boxed{\frac{1}{2}}.", True),
        (r"\boxed{}", False),
        (r"\boxed{ }", False),
        (r"\boxed{36", False),
        (r"\boxed{3}\boxed{6}", False),
        (r"\boxed{3}\boxed{6", False),
        (r"\boxed{\boxed{3}}", False),
        ("36", False),
        ("", False),
    ],
)
def test_the_default_format_is_one_closed_box_with_something_in_it(text: str, well_formed: bool) -> None:
    assert is_boxed_once(text) is well_formed


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\textbf{(C) } 42}", "C"),
        (r"$\boxed{\mathrm{D}}$", "D"),
        (r"\boxed{B. the red one}", "B"),
        (r"\boxed{A} no, wait: \boxed{A}", "A"),
        (r"(A) looks right but it is \boxed{B}", "B"),
        ("Answer: B", "B"),
        ("answer: (b)", "B"),
        ("Answer: c\n", "C"),
        ("**Answer:** B", "B"),
        ("The correct answer is **(D)**.", "D"),
        ("The answer is option C because it is red.", "C"),
        ("The answer is A.", "A"),
        ("The answer is A because it is red.", "A"),
        ("Option A is blue. Option B is red. The answer is B", "B"),
        ("The final answer is: $\\boxed{E}$", "E"),
        ("It must be (B).", "B"),
        ("So we choose option D", "D"),
        ("the count is two, so B", "B"),
        ("the count is two, so B.", "B"),
        ("B", "B"),
        ("b.", "B"),
        (" (C) ", "C"),
        (r"\boxed{A} or \boxed{B}", None),
        (r"\boxed{A or B}", None),
        (r"\boxed{(A),(B)}", None),
        (r"\boxed{A,B}", None),
        (r"\boxed{AB}", None),
        (r"\boxed{B} so \boxed{42}", None),
        (r"\boxed{}", None),
        ("Answer: A or B", None),
        ("Answer: A. Answer: B.", None),
        ("either (A) or (B)", None),
        ("Answer: I think so", None),
        ("A dog runs", None),
        ("I see", None),
        ("none of them", None),
        ("", None),
        ("A\x1f", "A"),  # white space of Python's, if of nobody else's
        ("b\u2003.\x85", "B"),
    ],
)
def test_one_letter_counts_and_hedging_does_not(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


@given(text=LATEX | st.text())
def test_the_search_for_a_letter_gives_one_capital_or_nothing(text: str) -> None:
    letter = choice_letter(text)
    assert letter is None or (len(letter) == 1 and letter.isascii() and letter.isupper())


@given(letters=st.lists(st.sampled_from("ABCDE"), min_size=2, max_size=5))
def test_boxes_must_agree_on_the_letter(letters: list[str]) -> None:
    text = " or ".join(f"\\boxed{{{letter}}}" for letter in letters)
    assert choice_letter(text) == (letters[0] if len(set(letters)) == 1 else None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("36", 36),
        ("-36", -36),
        ("+3.50", Fraction(7, 2)),
        (".5", Fraction(1, 2)),
        ("36.", 36),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1 234", 1234),
        (r"1{,}000", 1000),
        (r"1\,000", 1000),
        ("\u22125", -5),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac34", Fraction(-3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("2 1/2", Fraction(5, 2)),
        ("1.5e3", 1500),
        (r"1.5 \times 10^{-3}", Fraction(3, 2000)),
        ("$12.50", Fraction(25, 2)),
        (r"\$12.50", Fraction(25, 2)),
        ("x = 7", 7),
        (r"\(7\)", 7),
        ("5 cm", 5),
        (r"5\text{ cm}^2", 5),
        ("60 km/h", 60),
        (r"90^\circ", 90),
        ("12 red apples", 12),
        ("1,23", None),
        ("3 or 4", None),
        ("3, 4", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("2x", None),
        ("5 m", 5),
        ("5 N", 5),
        ("x", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_one_number_in_any_spelling(text: str, value: object) -> None:
    quantity = only_quantity(text)
    assert (quantity and quantity.value) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"calc37+8=45-9=36 \boxed{36}", 36),
        (r"\boxed{3} then \boxed{4 apples}", 4),
        (r"5 \boxed{none}", None),
        ("37+8=45, 45-9=36", 36),
        ("It fell from 5 to -3", -3),
        ("7-3", 3),
        ("Answer: 12. I checked 3 times.", 12),
        ("The answer is $1,200$ dollars, or 100 a month", 1200),
        ("no number", None),
        ("", None),
    ],
)
def test_the_box_decides_then_the_answer_then_the_last_number(text: str, value: object) -> None:
    quantity = last_quantity(text)
    assert (quantity and quantity.value) == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_a_written_decimal_is_read_exactly(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    quantity = last_quantity(rf"so \boxed{{{float(value):,.{places}f}}}")
    assert quantity is not None
    assert quantity.value == Fraction(f"{float(value):.{places}f}")


@given(LATEX | st.text())
def test_any_text_is_read_without_a_fault(text: str) -> None:
    last_quantity(text)
    only_quantity(text)
    choice_letter(text)
