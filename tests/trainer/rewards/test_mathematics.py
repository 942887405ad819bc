import pytest
from math_verify import parse, verify

from trainer.rewards import BadAnswerError
from trainer.rewards.mathematics import math_reward


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"calc37+8=45-9=36 \boxed{36}", "36", True),
        (r"calc37+8=45-9=36 \boxed{26}", "36", False),
        (r"\boxed{036}", "36", True),
        (r"\boxed{\frac{18}{36}}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{2}{0}}", r"\frac{1}{0}", False),
        (r"\boxed{17} but no, \boxed{18}", "17", False),
        (r"\boxed{36.}", "36", True),
        (r"\boxed{1\,000}", "1000", True),
        (r"\boxed{0.1\overline{6}}", r"\frac{1}{6}", True),
        (r"\boxed{\left( \dfrac{1}{2} , 3 \right)}", r"(\frac{1}{2},3)", True),
        (r"\boxed{x<3}", r"(-\infty,3)", True),
        ("The answer is 36.", "36", True),
        ("So $x = \\frac{1}{2}$.", r"$\frac{1}{2}$", True),
        (r"\boxed{}", "36", False),
        (r"\boxed{36", "35", False),
        ("I do not know", "36", False),
        ("", "36", False),
        (r"\boxed{3}", r"so \boxed{3}", True),
    ],
)
def test_verdicts(completion: str, answer: str, right: bool) -> None:
    assert math_reward(completion, answer) == right


@pytest.mark.parametrize("gold", ["36", "-7", "0", r"\frac{3}{4}", r"-\frac{6}{8}", "0.75"])
@pytest.mark.parametrize("content", ["36", "-7", "0", "-0", r"\frac{3}{4}", r"\frac{6}{8}", r"-\dfrac{3}{4}", "007"])
def test_the_short_cut_for_plain_numbers_gives_the_verdict_of_math_verify(content: str, gold: str) -> None:
    expected = verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{content}}}"))
    assert math_reward(rf"\boxed{{{content}}}", gold) == expected


def test_an_empty_gold_answer_judges_nothing() -> None:
    with pytest.raises(BadAnswerError, match="it is empty"):
        math_reward(r"\boxed{3}", " ")
