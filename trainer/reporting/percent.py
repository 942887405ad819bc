"""Shares between 0 and 1, for people."""


def percent(share: float, half_width: float | None = None, *, sign: str = "-", digits: int = 1, pm: str = " ± ") -> str:
    """`62.5`, or `62.5 ± 8.4` with half an interval. Sign `+` is for differences: `+3.1`."""
    # Sign `-` is Python's word for the usual: a sign where the number is negative.
    half = "" if half_width is None else f"{pm}{100 * half_width:.{digits}f}"
    return f"{100 * share:{sign}.{digits}f}{half}"
