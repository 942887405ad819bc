"""Cells of 32 x 32 pixels, one visual token each, with a coloured shape in them. A video is a row of such pictures."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
SHAPES = ("square", "disc", "triangle")
CELL = 32
"""Pixels of a cell's side: 2 x 2 patches of 16, which Qwen3-VL merges into one visual token."""
BACKGROUND = 235
FPS = 2
"""Frames in a second of every video: what `media.fps` takes, so that no frame is left out."""
SHIFT, TINT = 3, 20
"""The most that a shape is moved, in pixels, and tinted, of 255. At SHIFT 4 a square in a corner leaves its cell."""


def cell(
    rng: random.Random, colour: str, *, shape: str = "square", size: int = 20, middle: tuple[int, int] = (0, 0)
) -> NDArray[np.uint8]:
    """A cell [H, W, C]. Its shape is shifted and tinted a little, so that no two questions share their pixels."""
    pixels = np.full((CELL, CELL, 3), BACKGROUND, np.int16)  # a tint may lead above 255: cut at the end, not wrapped
    # Down, right, then the tint: in another order the same seed draws other pixels than the base has learnt.
    top, left = ((CELL - size) // 2 + offset + rng.randint(-SHIFT, SHIFT) for offset in middle)
    box = pixels[top : top + size, left : left + size]
    box[_covered(shape, size)] = np.array(COLOURS[colour]) + rng.randint(-TINT, TINT)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@cache
def _covered(shape: str, size: int) -> NDArray[np.bool_]:
    """The pixels of its box that a shape covers [size, size]."""
    down, right = (np.mgrid[:size, :size] + 0.5) * 2 / size - 1  # of a pixel's middle, from -1 to 1
    if shape == "disc":
        return down**2 + right**2 <= 1
    return 2 * np.abs(right) <= down + 1 if shape == "triangle" else np.full((size, size), True)


def grid(cells: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Cells row by row as one picture."""
    rows = [np.concatenate(cells[first : first + columns], axis=1) for first in range(0, len(cells), columns)]
    return np.concatenate(rows)
