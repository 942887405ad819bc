"""The miniature: a Qwen3-VL of about 3 M parameters and toy capabilities that it can really learn.

It makes the whole system run for real on two CPU cores with no download, and it is the instrument that this
project's claims are measured with: questions in disjoint splits, a blind level to read every accuracy against, and
a base that knows the skill and samples mistakes. `question` says what is asked, `capabilities/` holds a file for
each capability, `base` the shipped weights, `build` makes them anew, `check` measures them.
"""

from pathlib import Path

BASE = Path(__file__).with_name("base")
