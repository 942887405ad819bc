r"""The reward of competition mathematics: is the completion's answer equal to the gold one? By math-verify.

The last \boxed{...} is the answer; without a box math-verify looks for LaTeX and plain expressions itself. The gold
answer is LaTeX, with or without a box or dollar signs. math-verify's own time limits are off: they are SIGALRM
handlers whose exception sympy's bare `except` clauses may swallow, and one that arrives is answered with "not
equal", a 0 for a completion that nobody has judged. A hang belongs to whoever can kill it: trainer.rewards.pool.

Left out, as in math-verify: units, and whether (1, 2) is a point or an open interval.
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any, cast

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from trainer.rewards import BadAnswerError
from trainer.rewards.answers import last_box

# They log every expression that they cannot read, and once that their time limits are off.
for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_IN_A_BOX = [LatexExtractionConfig(boxed_match_priority=0)]
_IN_A_TEXT = [LatexExtractionConfig(), ExprExtractionConfig()]
_RATIONAL = re.compile(r"(-?)(?:(\d{1,18})|\\frac\{(\d{1,18})\}\{(\d{1,18})\})", re.ASCII)
_REPEATING = re.compile(r"(?<![\w.])(\d*)\.(\d*)\\overline\s*\{(\d+)\}", re.ASCII)


def math_reward(completion: str, answer: str) -> float:
    """1 when the completion's answer equals the gold one, else 0 (also when there is none)."""
    gold = _bare(last_box(answer) or answer)
    if not gold:
        raise BadAnswerError(f"answer {answer!r}: it is empty; give the expected expression")
    box = last_box(completion)
    if box is None:
        return _equal(_parsed_gold(gold), _parse(completion, _IN_A_TEXT))
    return _boxed_reward(_bare(box), gold)


def warm_up() -> None:
    """Teaches the LaTeX parser its tables (it builds them as it meets new forms), so that forks inherit them."""
    for gold, content in _WARM_UP:
        _boxed_reward(content, gold)
    math_reward("Hence the final answer is $x = 3$, or 7/2.", "4")


@lru_cache(maxsize=1024)  # the completions of a group give the same few answers to the same question
def _boxed_reward(content: str, gold: str) -> float:
    # Certain without sympy: the same text is the same answer; two plain integers or fractions are equal when their
    # values are, which is what math-verify finds after parsing both to sympy.Rational.
    text, gold_text = _spelling(content), _spelling(gold)
    if text == gold_text:
        return 1.0
    number, gold_number = _rational(text), _rational(gold_text)
    if number is not None and gold_number is not None:
        return float(number == gold_number)
    return _equal(_parsed_gold(gold), _parse_box(content))


def _equal(gold: list[Any], expressions: list[Any]) -> float:
    try:
        return float(verify(gold, expressions, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True))
    except (MemoryError, RecursionError):
        raise  # the limits of this process, no verdict
    except Exception:  # sympy cannot compare the two, as with 1/0: they were not shown to be equal
        return 0.0


@lru_cache(maxsize=1024)  # the completions of a group share their gold answer
def _parsed_gold(gold: str) -> list[Any]:
    return _parse_box(gold)


def _parse_box(content: str) -> list[Any]:
    return _parse(rf"\boxed{{{content}}}", _IN_A_BOX)


def _parse(text: str, where: list[Any]) -> list[Any]:
    # parsing_timeout is typed int, and None is its documented "off".
    return parse(text, where, parsing_timeout=cast(int, None))


def _bare(text: str) -> str:
    r"""The expression without the spellings that math-verify misreads: "36.", 1\,000, 0.\overline{3}."""
    text = text.strip().removeprefix("$").removesuffix("$").strip().removesuffix(".").strip("~ \n\t")
    # A separator only between a digit and three more: in "1, 200" it parts two numbers.
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|\{,\}|~)(?=\d{3}(?!\d))", "", text)
    return _REPEATING.sub(_repeating, text)


def _spelling(text: str) -> str:
    r"""One text for those that differ in blanks, \left and \right, and \dfrac for \frac."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text))
    return re.sub(r"(?<!\w)\s+|\s+(?!\w)", "", text)  # a blank between two words or digits may mean something


def _rational(text: str) -> Fraction | None:
    match = _RATIONAL.fullmatch(text)
    if match is None:
        return None
    sign, integer, top, bottom = match.groups()
    if integer is None and int(bottom) == 0:
        return None
    return Fraction(f"{sign}{integer}") if integer else Fraction(f"{sign}{top}/{bottom}")


def _repeating(match: re.Match[str]) -> str:
    # 0.s(p) = (whole s * (10^|p| - 1) + p) / (10^|s| * (10^|p| - 1))
    whole, start, period = (group or "" for group in match.groups())
    scale = 10 ** len(start)
    nines = 10 ** len(period) - 1
    top = int(whole + start or "0") * nines + int(period)
    return rf"\frac{{{top}}}{{{scale * nines}}}"


_WARM_UP = (
    (r"\frac{1}{2}", r"-\frac{b}{a}"),
    (r"2\sqrt{3}", r"\sqrt[3]{12}"),
    (r"\frac{3+\sqrt{7}}{2}", r"4-3\pi"),
    (r"[1,2)\cup(3,\infty)", r"(-\infty,1]\cup[2,3)"),
    (r"[-\frac{2}{3},\frac{1}{4}]", r"(0.5,2]"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}\frac{1}{2}&-2\\0&1.5\end{bmatrix}"),
    (r"\begin{pmatrix}-5\\2\end{pmatrix}", r"(1,4),(3,2)"),
    (r"x=5", r"3x-2y+4=0"),
    (r"y=\frac{1}{2}x", r"y=2x^2+1"),
    (r"(x-1)^2+(y+2)^2=16", r"x^2+y^2=9"),
    (r"\{1,2,3\}", r"3\pm\sqrt{2}"),
    (r"x=3\text{ or }x=4", r"7,4"),
    (r"(2,-3,1)", r"(\frac{\sqrt{2}}{2},-\frac{1}{3})"),
    (r"(4,\frac{\pi}{3})", r"(0,3)"),
    (r"50\%", r"0.5"),
    (r"1\le x\le 2", r"x>3"),
    (r"x\in[2,7)", r"x\ge\frac{3}{2}"),
    (r"\sin x+\cos^2 x", r"\log_2 8"),
    (r"e^{2x}", r"3+4i"),
    (r"\text{Yes}", r"5\text{ cm}"),
    (r"\binom{5}{2}", r"10!"),
    (r"\frac{n(n-1)}{2}", r"2\cdot 3^n-1"),
    (r"x^2+2x+1", r"(x+1)(x-1)"),
)
