r"""Where the answer stands in a text: boxes, choice letters, numbers. Pure functions of strings that never raise."""

import re
from dataclasses import dataclass
from fractions import Fraction

# A backslash takes the character after it along, so that an escaped brace opens and closes nothing.
_BRACE = re.compile(r"\\+boxed\s*\{|\\.|[{}]", re.DOTALL)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|rm|bf)\s*\{([^{}]*)\}")


def boxes(text: str) -> tuple[list[str], int]:
    r"""Contents of the closed \boxed{...}, in the order in which they open, and how many are opened in all.

    One pass over the braces, so that a text of ten thousand open boxes costs no more than any other.
    """
    opened: list[tuple[int, bool]] = []
    closed: dict[int, str] = {}
    num_opened = 0
    for token in _BRACE.finditer(text):
        mark = token.group()
        if mark == "}":
            start, is_box = opened.pop() if opened else (0, False)  # one too many is read over
            if is_box:
                closed[start] = text[start : token.start()]
        elif mark == "{" or "boxed" in mark:
            opened.append((token.end(), mark != "{"))
            num_opened += mark != "{"
    # A nested box closes first but opens last: sorted by where they open, the innermost is the last answer.
    return [closed[start] for start in sorted(closed)], num_opened


def last_box(text: str) -> str | None:
    r"""The content of the last closed \boxed{...}: the innermost where they are nested, None where there is none."""
    closed, _ = boxes(text)
    return closed[-1] if closed else None


def is_boxed_once(text: str) -> bool:
    r"""Exactly one \boxed{...}, closed and not empty: the default format."""
    closed, num_opened = boxes(text)
    return num_opened == 1 and len(closed) == 1 and bool(closed[0].strip())


def _unwrapped(text: str) -> str:
    r"""The text without Markdown stars, dollar signs and \text{...}-like wrappers (two levels deep)."""
    text = re.sub(r"[*$]|\\[()\[\]]|\\(?:left|right)\b|\\ ", "", text)
    return _WRAPPER.sub(r"\1", _WRAPPER.sub(r"\1", text))


# ---- choice ----

# "A" and "I" are also words: outside brackets they count only before a stop, the end, or a word of reasoning.
_WORD_END = r"(?=\s*[.,;:!?\n]|\s*$|\s+(?:because|since|as|and|or)\b)"
_LETTER = rf"(?:\(\s*[A-Za-z]\s*\)|[B-HJ-Z](?![\w'-])|[AI](?![\w'-]){_WORD_END}|[a-z](?=[.!]?\s*(?:\n|$)))"
_LETTERS = re.compile(rf"{_LETTER}(?:\s*(?:,|/|&|\bor\b|\band\b)\s*{_LETTER})*")
_ANSWER = re.compile(
    r"(?i:\banswer(?:\s+(?:is|choice|option|letter|would|should|must|be))*|\bfinal\s+choice(?:\s+is)?)\s*[:=]?\s*"
    rf"(?i:(?:option|choice)\s*)?(?P<letters>{_LETTERS.pattern})"
)
_MENTION = re.compile(r"(?<!\w)\(\s*(?P<letters>[A-Z])\s*\)|(?i:\b(?:option|choice))\s+(?P<bare>[A-Z])(?![\w'-])")
_LAST = re.compile(r"(?:^|[\s:(\[])(?P<letters>[A-Z])[)\].!\s]*$")
_BOXED_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*(?:$|\)\s*$|[).:]\s*(?!\s*(?:or|and|,|/|&|\())\S.*$)", re.DOTALL)


def only_letter(text: str) -> str | None:
    """The letter that this short text is: "B", "(b)", "B.", "(B) 42", "B: the red one"; None for "B or C"."""
    match = _BOXED_LETTER.match(_unwrapped(text).strip().rstrip("."))
    return match.group(1).upper() if match else None


def choice_letter(text: str) -> str | None:
    r"""The one letter that the text answers with, None when there is none or more than one.

    The strongest evidence decides: boxes; else "the answer is B"; else "(B)" and "option B"; else a letter at the
    very end. All evidence of that strength must name the same letter: hedging is not an answer.
    """
    closed, _ = boxes(text)
    if closed:
        # The last box must be a letter itself: "B" and then "42" in boxes is no choice.
        named = {letter for box in closed if (letter := only_letter(box))}
        return named.pop() if len(named) == 1 and only_letter(closed[-1]) else None
    text = _unwrapped(text)
    if alone := re.fullmatch(r"\s*([A-Za-z])\s*\.?\s*", text):
        return alone[1].upper()
    for evidence in (_ANSWER, _MENTION, _LAST):
        mentions = [match.group(match.lastgroup or 0) for match in evidence.finditer(text)]
        named = {letter.upper() for mention in mentions for letter in re.findall(r"\b[A-Za-z]\b", mention)}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


# ---- numbers ----

_UNIT_NAMES = {
    "m": "meter metre", "km": "kilometer kilometre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "g": "gram gramme", "kg": "kilogram", "s": "sec second", "min": "minute", "h": "hr hour", "day": "d",
    "l": "liter litre", "ml": "milliliter millilitre", "inch": "in", "ft": "foot feet", "mile": "mi", "year": "yr",
    "degree": "deg", "rad": "radian", "dollar": "usd", "euro": "eur", "cent": "", "week": "", "month": "",
}  # fmt: skip
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in (unit, *names.split())}

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:\ \d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
_QUANTITY = re.compile(
    rf"""(?:(?<![\w)}}.])(?P<sign>[-+])\s*)?
    (?:(?:(?P<whole>\d+)\s*)?\\frac\s*(?:\{{\s*(?P<top>-?{_DECIMAL})\s*\}}|(?P<top_digit>\d))
          \s*(?:\{{\s*(?P<bottom>-?{_DECIMAL})\s*\}}|(?P<bottom_digit>\d))
      |(?P<mixed>\d+)\s+(?P<mixed_top>\d+)\s*/\s*(?P<mixed_bottom>\d+)
      |(?P<decimal>{_DECIMAL})(?:\s*/\s*(?P<over>{_DECIMAL}))?)
    (?:[eE](?P<e>[-+]?\d{{1,3}})(?!\w)|\s*\*\s*10\s*\^\s*\{{?\s*(?P<power>[-+]?\d{{1,3}})(?!\d)\s*\}}?)?
    (?P<percent>\s*(?:%|percent\b|pct\b))?
    (?P<unit>(?:[A-Za-z\u00b5\u03bc\u03a9\u00b0\u00b2\u00b3/\u00b7*.\s]|-(?=[A-Za-z])|\^\{{?-?\d\}}?)*)""",
    re.VERBOSE,
)
_NUMBER_PREFIX = re.compile(r"^\s*(?:[A-Za-z]\w*\s*=|\\approx|\u2248|~|\u20ac|\xa3|\xa5)?\s*(?:\u20ac|\xa3|\xa5)?\s*")
_NUMBER_ANSWER = re.compile(r"(?i:\banswer\b(?:\s+is)?)\s*[:=]?\s*(?=[-+.\d\\])")
_MAX_DIGITS = 300
"""Digits in any part of a number. Beyond it is no answer, and Python refuses to convert more than 4300."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it was written: 50% is 50 with `is_percent`, "5 cm^2" is 5 with the unit "cm^2"."""

    value: Fraction
    is_percent: bool
    unit: str | None


def only_quantity(text: str) -> Quantity | None:
    """The quantity that this short text is, None when it is anything else or more than one."""
    plain = _plain_numbers(text).strip().rstrip(".")
    match = _QUANTITY.fullmatch(_NUMBER_PREFIX.sub("", plain, count=1))
    if match is None or any(letter not in _UNITS for letter in re.findall(r"\b[a-z]\b", match["unit"])):
        return None  # 2x is no number
    return _quantity(match)


def last_quantity(text: str) -> Quantity | None:
    r"""The quantity in the last \boxed{...}; without a box, the one after the last "answer", else the last one."""
    box = last_box(text)
    if box is not None:
        return only_quantity(box)
    plain = _plain_numbers(text)
    # "The answer is 36, not 26": what stands after the word outweighs what stands last.
    starts = [match.end() for match in _NUMBER_ANSWER.finditer(plain)]
    if starts and (match := _QUANTITY.match(plain, starts[-1])):
        return _quantity(match)
    last = None
    for match in _QUANTITY.finditer(plain):
        last = match
    return _quantity(last) if last else None


def _plain_numbers(text: str) -> str:
    """LaTeX and Unicode spellings of a number brought to one."""
    text = _WRAPPER.sub(r" \1 ", _WRAPPER.sub(r" \1 ", text))
    for spelling, plain in (
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\[,!;: ]|~|[\u00a0\u2009\u202f]", " "),
        (r"\{,\}", ","),
        (r"\\%", "%"),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", " degree"),
        (r"\\times|\\cdot|\u00d7", "*"),
        (r"\u2212", "-"),
        (r"\\left|\\right|\\[()\[\]]|\\?\$|(?<!\w)\*\*|\*\*(?!\w)", ""),
    ):
        text = re.sub(spelling, plain, text)
    return text


def _quantity(match: re.Match[str]) -> Quantity | None:
    part = match.groupdict(default="")
    if max(len(digits) for name, digits in part.items() if name != "unit") > _MAX_DIGITS:
        return None
    top = _fraction(part["top"] or part["top_digit"] or part["mixed_top"] or part["decimal"])
    bottom = _fraction(part["bottom"] or part["bottom_digit"] or part["mixed_bottom"] or part["over"] or "1")
    if bottom == 0:
        return None
    value = _fraction(part["whole"] or part["mixed"] or "0") + top / bottom
    value *= Fraction(10) ** int(part["e"] or part["power"] or "0")
    return Quantity(-value if part["sign"] == "-" else value, bool(part["percent"]), _unit(part["unit"]))


def _fraction(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", digits).removesuffix("."))


def _unit(text: str) -> str | None:
    """The unit in one spelling ("square" and unknown words give None: they are read over)."""
    text = text.lower().replace("\u00b2", "^2").replace("\u00b3", "^3").replace("\u00b0", "degree")
    words = re.findall(r"[a-z\u00b5\u03bc\u03c9]+", text)
    known = {word: _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) for word in words}
    if not words or None in known.values():
        return None
    bare = re.sub(r"[\s{}.*]", "", text)  # the operators stay: cm^2 is not cm, and km/h not km h
    return re.sub(r"[a-z\u00b5\u03bc\u03c9]+", lambda word: known[word.group()] or "", bare)
