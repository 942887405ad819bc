"""Cells of 32 x 32 pixels, one visual token each, with a coloured square in them. A video is a row of such pictures."""

import random

import numpy as np
from numpy.typing import NDArray

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
CELL = 32
BACKGROUND = 235
FPS = 2  # of every video
SHIFT, TINT = 3, 20


def cell(rng: random.Random, colour: str, *, size: int = 20, middle: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """A cell [H, W, C]. Its square is shifted and tinted a little, so that no two questions share their pixels."""
    pixels = np.full((CELL, CELL, 3), BACKGROUND, np.int16)
    top, left = ((CELL - size) // 2 + offset + rng.randint(-SHIFT, SHIFT) for offset in middle)
    pixels[top : top + size, left : left + size] = np.array(COLOURS[colour]) + rng.randint(-TINT, TINT)
    return np.clip(pixels, 0, 255).astype(np.uint8)
