import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from trainer.rewards import (
    RewardItem,
    Rule,
    Scored,
    choice_reward,
    exact_reward,
    judge,
    load,
    numeric_reward,
)

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def judged(function: Callable[[str, str], object], rule: Rule, monkeypatch: pytest.MonkeyPatch) -> Scored:
    monkeypatch.setattr(sys.modules[__name__], "user_function", function)
    return judge(load(rule), RewardItem(r"so \boxed{1}", "1"))


def user_function(completion: str, answer: str) -> object:
    raise NotImplementedError


USER = Rule(f"{__name__}:user_function")


def test_choice_compares_letters() -> None:
    assert choice_reward("The answer is (b).", "B") == 1
    assert choice_reward(r"\boxed{C}", "(C)") == 1
    assert choice_reward(r"\boxed{C}", "B") == 0
    assert choice_reward(r"\boxed{B} or \boxed{C}", "B") == 0
    assert choice_reward("", "B") == 0


@given(st.text())
def test_a_text_without_a_letter_is_never_right(text: str) -> None:
    assert choice_reward("".join(char for char in text if not char.isalpha()), "B") == 0


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"\boxed{36}", "36", True),
        (r"\boxed{36.0}", "36", True),
        (r"\boxed{1,234}", "1234", True),
        (r"\boxed{0.75}", "3/4", True),
        (r"\boxed{\frac{1}{3}}", "1/3", True),
        (r"\boxed{0.333}", "1/3", False),
        (r"\boxed{50\%}", "0.5", True),
        (r"\boxed{50\%}", "50", True),
        (r"\boxed{50}", r"50\%", True),
        (r"\boxed{50\%}", "5", False),
        (r"\boxed{5 cm}", "5", True),
        (r"\boxed{5}", "5 cm", True),
        (r"\boxed{5\text{ centimeters}}", "5 cm", True),
        (r"\boxed{5 m}", "5 km", False),
        (r"\boxed{60 km/h}", "60 kilometres/hour", True),
        (r"\boxed{5 cm^2}", "5 cm", False),
        (r"\boxed{12 red apples}", "12 apples", True),
        (r"\boxed{-36}", "36", False),
        ("37+8=45, 45-9=36", "36", True),
        ("The answer is 36, not 26", "36", True),
        (r"\boxed{}", "36", False),
        ("none", "36", False),
        ("", "36", False),
        (r"\boxed{36}", r"\boxed{36}", True),
    ],
)
def test_numeric_reads_separators_units_percent_and_fractions(completion: str, answer: str, right: bool) -> None:
    assert numeric_reward(completion, answer) == right


@given(gold=FINITE, number=FINITE, tolerance=st.sampled_from([0, 1e-6, 0.01, 0.5]))
def test_tolerance_is_absolute_below_one_and_relative_above(gold: float, number: float, tolerance: float) -> None:
    x, y = Fraction(f"{number:.9f}"), Fraction(f"{gold:.9f}")
    right = abs(x - y) <= Fraction(tolerance) * max(1, abs(y))
    assert numeric_reward(rf"\boxed{{{number:.9f}}}", f"{gold:.9f}", tolerance) == right


def test_exact_compares_the_last_box_white_space_aside() -> None:
    assert exact_reward("\\boxed{red  \n square }", " red square") == 1
    assert exact_reward(r"\boxed{red}\boxed{blue}", "blue") == 1
    assert exact_reward(r"\boxed{Red}", "red") == 0
    assert exact_reward("red", "red") == 0
    assert exact_reward(r"\boxed{}", "red") == 0
    assert exact_reward("", "red") == 0


@given(before=st.text(alphabet="ab {}1"), words=st.lists(st.text("xyz01+", min_size=1), min_size=1, max_size=4))
def test_exact_finds_what_was_put_into_the_box(before: str, words: list[str]) -> None:
    gold = " ".join(words)
    assert exact_reward(f"{before}\\boxed{{{'  '.join(words)}}}", gold) == 1
    assert exact_reward(f"{before}\\boxed{{{gold}!}}", gold) == 0


def test_the_format_share_mixes_accuracy_and_format() -> None:
    total = load(Rule("exact", format_share=0.1))
    assert total(r"so \boxed{1}", "1") == pytest.approx(1.0)
    assert total(r"so \boxed{2}", "1") == pytest.approx(0.1)
    assert total(r"\boxed{2}\boxed{1}", "1") == pytest.approx(0.9)
    assert total("1", "1") == 0


def test_a_format_pattern_must_match_the_whole_completion() -> None:
    total = load(Rule("exact", format_share=0.5, format_pattern=r"<think>.*</think>\s*\\boxed\{\d+\}"))
    assert total("<think>a\nb</think>\n\\boxed{1}", "1") == 1
    assert total("<think>a\nb</think>\n\\boxed{1} indeed", "1") == 0.5


@pytest.mark.parametrize("value", [1, 0.5, -2.5, True, Fraction(1, 2), np.float32(0.5), np.int64(3), np.float64(0.25)])
def test_a_real_number_is_a_score(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = judged(lambda completion, answer: value, USER, monkeypatch)
    assert scored == Scored(float(value))  # type: ignore[arg-type]
    assert type(scored.value) is float


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "it returned NoneType, not a number"),
        ("1", "it returned str, not a number"),
        ([1.0], "it returned list, not a number"),
        (1 + 0j, "it returned complex, not a number"),
        (math.nan, "it returned nan"),
        (-math.inf, "it returned -inf"),
        (10**400, "it raised OverflowError: int too large to convert to float"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_anything_else_is_unscorable(value: object, why: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule(USER.kind, format_share=share)
    assert judged(lambda completion, answer: value, rule, monkeypatch) == Scored(None, why)


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("no\nway"), "it raised ValueError: no way"),
        (ValueError("x" * 1000), "it raised ValueError: " + "x" * 200),
        (KeyboardInterrupt(), "it raised KeyboardInterrupt"),
        (SystemExit(3), "it raised SystemExit: 3"),
        (GeneratorExit(), "it raised GeneratorExit"),
        (SilentError(), "it raised SilentError"),
    ],
)
def test_whatever_is_raised_is_unscorable_and_named(
    error: BaseException, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(completion: str, answer: str) -> float:
        raise error

    assert judged(raising, USER, monkeypatch) == Scored(None, why)


@pytest.mark.parametrize(
    ("kind", "answer", "remedy"),
    [
        ("choice", "42", "needs one letter"),
        ("choice", "A or B", "needs one letter"),
        ("choice", "", "needs one letter"),
        ("numeric", "red", "needs one number"),
        ("numeric", "", "needs one number"),
        ("exact", " ", "it is empty"),
        ("math", "", "it is empty"),
    ],
)
def test_a_useless_gold_answer_is_unscorable_and_never_a_zero(kind: str, answer: str, remedy: str) -> None:
    for completion in (r"\boxed{A}", "none"):
        scored = judge(load(Rule(kind)), RewardItem(completion, answer))
        assert scored.value is None
        assert remedy in str(scored.why)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"kind": "maths"}, "use math, choice, numeric, exact, reasoning-gym, or module:function"),
        ({"kind": "a b:c"}, "module:function"),
        ({"kind": "math", "format_share": 1.5}, "between 0 and 1"),
        ({"kind": "math", "tolerance": -1.0}, "small positive number"),
        ({"kind": "math", "tolerance": math.nan}, "small positive number"),
        ({"kind": "math", "format_pattern": "("}, "no regular expression"),
    ],
)
def test_a_wrong_setting_is_a_user_error(settings: dict[str, object], remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        Rule(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "kind", "remedy"),
    [
        ("", "absent_module:reward", "No module named 'absent_module'; put the module beside the recipe"),
        ("", "my_rewards:absent", "has no attribute 'absent'; name a function"),
        ("reward = 3", "my_rewards:reward", "not a callable object"),
        ("def reward(completion): ...", "my_rewards:reward", r"it is called as reward\(completion, answer\)"),
        ("def reward(completion, answer, prompt): ...", "my_rewards:reward", "it is called as"),
        ("1 / 0", "my_rewards:reward", "its import raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrong_path_is_a_user_error(
    source: str, kind: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    with pytest.raises(UserError, match=remedy):
        load(Rule(kind))


def test_an_own_function_may_have_more_parameters_with_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lengths.py").write_text(
        "def brevity(completion, answer, limit=10): return len(completion) <= limit"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load(Rule("my_lengths:brevity"))("short", "") == 1
