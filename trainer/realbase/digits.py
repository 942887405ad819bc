"""Handwritten digits: 1,797 scans of 8 x 8 pixels, which scikit-learn brings, and pictures of rows of them.

The scans of the splits are disjoint, so a digit that is asked about was never seen in training.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELL = 32
"""Pixels of a digit's cell on each side: one token of the vision tower."""
_DRAWN = 26
"""Pixels of a digit in it. The rest is room to shift it by."""
_COUNTS = {"train": 1400, "validation": 150, "test": 247}

Split = Literal["train", "validation", "test"]


@cache
def scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Pixels from 0 to 1 [N, 8, 8], and what each shows [N]."""
    from sklearn.datasets import load_digits  # its import takes a second

    loaded: Any = load_digits()
    return loaded.images / 16, loaded.target.astype(np.int64)


def of_split(split: Split) -> NDArray[np.int64]:
    """The numbers of the scans of a split."""
    _, labels_N = scans()
    # By chance: the scans of a writer stand together in the file, and each split is to have some of every hand.
    order_N = np.random.default_rng(0).permutation(len(labels_N))
    bounds = itertools.pairwise(np.cumsum([0, *_COUNTS.values()]))
    start, end = dict(zip(_COUNTS, bounds, strict=True))[split]
    return order_N[start:end]


def scans_of(digits: Sequence[int], split: Split, rng: np.random.Generator) -> list[int]:
    """The numbers of scans of a split, one for each digit, which it shows."""
    numbers, labels_N = of_split(split), scans()[1]
    return [int(rng.choice(numbers[labels_N[numbers] == digit])) for digit in digits]


def picture(numbers: Sequence[int] | NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A row of scans, each somewhere in its cell [CELL, CELL * row, 3]."""
    images_N, _ = scans()
    row = np.zeros((CELL, CELL * len(numbers)), np.uint8)
    for position, number in enumerate(numbers):
        scan = Image.fromarray((images_N[number] * 255).astype(np.uint8))
        drawn = np.asarray(scan.resize((_DRAWN, _DRAWN), Image.Resampling.BICUBIC))
        # Never twice in one spot: the tower is to know what a digit is, not where it stood.
        top, left = rng.integers(0, CELL - _DRAWN + 1, 2)
        left += position * CELL
        row[top : top + _DRAWN, left : left + _DRAWN] = drawn
    return np.repeat(row[:, :, None], 3, axis=2)
