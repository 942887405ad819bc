r"""Rewards by name: a completion and its gold answer in, a number out, or the reason why there is none.

`math`      equal to the gold answer as mathematics (trainer.rewards.mathematics)
`choice`    the gold letter, and no other one
`numeric`   a number within `tolerance` of the gold one: absolute below 1, relative above; percent, fractions, units
`exact`     the text of the last \boxed{...}, white space aside
`reasoning-gym`    the task's own score, of an entry of reasoning-gym (trainer.rewards.reasoning)
`module:function`  your own, called as `function(completion, answer)`

"No answer found" is a 0. A reward that raises, or that returns anything but a finite real number, leaves the
completion *unscorable*: `Scored.value` is None and `Scored.why` says what happened. It is not a 0, because nobody
has judged the completion.

**Your own function** takes two strings by position and returns a finite real number (`numbers.Real`: int, float,
NumPy's scalars; True and False count as 1 and 0, since `return found == answer` is what one writes first). What it
needs beyond the gold answer travels in `answer`, as JSON for instance. It is called many times in the same process,
which may be killed and replaced between any two calls: keep nothing there but caches. Its module is imported in
each of those processes, with stdout and stderr on /dev/null, and never in the trainer's.

Left out: time limits, crashes and memory, which need a process of their own: trainer.rewards.pool.
"""

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from numbers import Real
from typing import cast

from adapters.errors import UserError
from trainer.rewards.answers import (
    Quantity,
    choice_letter,
    is_boxed_once,
    last_box,
    last_quantity,
    only_letter,
    only_quantity,
)

KINDS = ("math", "choice", "numeric", "exact", "reasoning-gym")

Scorer = Callable[[str, str], object]
"""A reward as its author writes it: what it returns is not checked yet."""


class BadAnswerError(UserError):
    """A gold answer with which this kind of reward cannot judge anything."""


class NotANumberError(Exception):
    """A reward returned something else than a finite real number."""


@dataclass(frozen=True, slots=True)
class RewardItem:
    """A completion and the gold answer of its prompt."""

    completion: str
    answer: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of a completion; or None, and why it could not be scored."""

    value: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    r"""The score of a completion: (1 - format_share) * accuracy + format_share * format.

    `format` is 1 when `format_pattern` matches the whole completion (newlines count as any character); without a
    pattern, when the completion holds exactly one \boxed{...}, closed and not empty.
    """

    kind: str
    format_share: float = 0.0
    format_pattern: str | None = None
    tolerance: float = 0.0
    folder: str | None = None
    """Where a function's module is looked for first; None: only where Python looks."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not re.fullmatch(r"[\w.]+:\w+", self.kind):
            raise UserError(f"reward {self.kind!r}: unknown; use {', '.join(KINDS)}, or module:function for your own")
        if not 0 <= self.format_share <= 1:
            raise UserError(f"reward {self.kind}: format_share is {self.format_share}; choose it between 0 and 1")
        if not 0 <= self.tolerance < math.inf:
            raise UserError(f"reward {self.kind}: tolerance is {self.tolerance}; choose 0 or a small positive number")
        try:
            re.compile(self.format_pattern or "")
        except re.error as error:
            raise UserError(f"reward {self.kind}: format_pattern is no regular expression: {error}") from error


def choice_reward(completion: str, answer: str) -> float:
    """1 when the completion answers with the gold letter and with no other."""
    gold = only_letter(answer)
    if gold is None:
        raise BadAnswerError(f"answer {answer[:80]!r}: reward choice needs one letter, such as B")
    return float(choice_letter(completion) == gold)


def numeric_reward(completion: str, answer: str, tolerance: float = 0.0) -> float:
    """1 when |x - gold| <= tolerance * max(1, |gold|).

    A unit may be missing on either side; two different known units are wrong. A percent sign on one side only is
    read both as a factor (50% for 0.5) and as a unit (50% for 50): gold answers are written either way.
    """
    gold = last_quantity(answer) if "\\boxed" in answer else only_quantity(answer)
    if gold is None:
        raise BadAnswerError(f"answer {answer[:80]!r}: reward numeric needs one number, such as 12.5 or 3/4")
    quantity = last_quantity(completion)
    if quantity is None or (quantity.unit and gold.unit and quantity.unit != gold.unit):
        return 0.0
    # Exact fractions: in floats 0.1 + 0.2 is not 0.3, and a tolerance of 0 would depend on the last bit.
    limit = Fraction(tolerance)
    pairs = [(quantity.value, gold.value)]
    if quantity.is_percent != gold.is_percent:
        pairs.append((_as_factor(quantity), _as_factor(gold)))
    return float(any(abs(x - y) <= limit * max(1, abs(y)) for x, y in pairs))


def exact_reward(completion: str, answer: str) -> float:
    r"""1 when the last \boxed{...} holds the gold answer, runs of white space counting as one blank."""
    if not answer.strip():
        raise BadAnswerError(f"answer {answer!r}: it is empty; give the text that the box must hold")
    box = last_box(completion)
    return float(box is not None and box.split() == answer.split())


def load(rule: Rule) -> Callable[[str, str], float]:
    """The reward as one function of completion and answer. Imports the user's module, if it is one of the user's."""
    accuracy: Scorer
    if rule.kind == "math":
        # Here and not above: sympy takes a third of a second, which only the children need to spend.
        from trainer.rewards.mathematics import math_reward

        accuracy = math_reward
    elif rule.kind == "reasoning-gym":
        from trainer.rewards.reasoning import reasoning_reward

        accuracy = reasoning_reward()
    elif rule.kind == "numeric":
        accuracy = partial(numeric_reward, tolerance=rule.tolerance)
    else:
        accuracy = {"choice": choice_reward, "exact": exact_reward}.get(rule.kind) or _user_function(rule)
    share = rule.format_share
    pattern = re.compile(rule.format_pattern, re.DOTALL) if rule.format_pattern is not None else None

    def total(completion: str, answer: str) -> float:
        value = _finite(accuracy(completion, answer))
        if not share:
            return value
        well_formed = pattern.fullmatch(completion) is not None if pattern else is_boxed_once(completion)
        return (1 - share) * value + share * well_formed

    return total


def judge(scorer: Callable[[str, str], float], item: RewardItem) -> Scored:
    """Scores one completion, whatever the reward throws, SystemExit and KeyboardInterrupt included.

    A MemoryError passes: it says that this process is no longer fit to judge.
    """
    try:
        return Scored(scorer(item.completion, item.answer))
    except MemoryError:
        raise
    except (BadAnswerError, NotANumberError) as error:
        return Scored(None, str(error))
    except BaseException as error:  # also SystemExit: a reward that calls sys.exit must not end the child with it
        return Scored(None, f"it raised {describe(error)}")


def describe(error: BaseException) -> str:
    """Type and message in one short line, even when the message itself raises."""
    try:
        message = " ".join(str(error).split())[:200]
    except BaseException:
        message = ""
    name = type(error).__name__
    return f"{name}: {message}" if message else name


def _user_function(rule: Rule) -> Scorer:
    path, folder = rule.kind, rule.folder
    module_name, _, name = path.partition(":")
    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)  # first and for good, as Python does for a script: it may import others beside it
    try:
        function = getattr(importlib.import_module(module_name), name)
        inspect.signature(function).bind("completion", "answer")  # a wrong signature fails before the first step
    except ModuleNotFoundError as error:
        remedy = "put the module beside the recipe, or its folder on PYTHONPATH"
        raise UserError(f"reward {path}: {error}; {remedy}") from error
    except AttributeError as error:
        raise UserError(f"reward {path}: {error}; name a function of that module") from error
    except TypeError as error:
        raise UserError(f"reward {path}: {error}; it is called as {name}(completion, answer)") from error
    except Exception as error:
        raise UserError(f"reward {path}: its import raised {describe(error)}; mend the module") from error
    return cast(Scorer, function)


def _finite(value: object) -> float:
    if not isinstance(value, Real):
        raise NotANumberError(f"it returned {type(value).__name__}, not a number")
    number = float(value)  # NumPy's scalars and fractions would not pass through JSON
    if not math.isfinite(number):
        raise NotANumberError(f"it returned {number}")
    return number


def _as_factor(quantity: Quantity) -> Fraction:
    return quantity.value / 100 if quantity.is_percent else quantity.value
