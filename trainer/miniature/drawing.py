"""Cells of 32 x 32 pixels, one visual token each, with a coloured square somewhere in the middle."""

import random

import numpy as np
from numpy.typing import NDArray

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
CELL = 32
BACKGROUND = 235
_SQUARE, _MARGIN, _SHIFT, _TINT = 20, 6, 3, 20


def cell(rng: random.Random, colour: str | None) -> NDArray[np.uint8]:
    """A cell [H, W, C]; its square is shifted and tinted a little, so that no two questions share their pixels."""
    pixels = np.full((CELL, CELL, 3), BACKGROUND, np.int16)
    if colour is not None:
        top, left = (_MARGIN + rng.randint(-_SHIFT, _SHIFT) for _ in range(2))
        pixels[top : top + _SQUARE, left : left + _SQUARE] = np.array(COLOURS[colour]) + rng.randint(-_TINT, _TINT)
    return np.clip(pixels, 0, 255).astype(np.uint8)
