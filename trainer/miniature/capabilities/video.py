"""video: count the turns of a square that goes from corner to corner, then subtract. `37-right?`

The corners are numbered clockwise; a move to the next one is a turn to the right, to the one before a turn to the left.
"""

import random
from functools import partial

import numpy as np

from trainer.miniature.drawing import cell
from trainer.miniature.question import Frames, MiniatureCapability, Scene

MOVES = 5
FRAMES_PER_MOVE = 2  # the vision tower folds two frames into one step of time
CORNERS = ((-6, -6), (-6, 6), (6, 6), (6, -6))  # rows and columns from the middle; clockwise


def scene(rng: random.Random) -> Scene:
    """The count first, then when: every count from 0 to 5 is equally likely, and the best blind guess is 1 in 6."""
    key, opposite = rng.choice((("right", "left"), ("left", "right")))
    count = rng.randint(0, MOVES)
    counted = [True] * count + [False] * (MOVES - count)
    rng.shuffle(counted)
    turns = [key if is_key else opposite for is_key in counted]
    corners = [rng.randrange(len(CORNERS))]
    for turn in turns:
        corners.append((corners[-1] + (1 if turn == "right" else -1)) % len(CORNERS))
    # The corners are written down first, then the turns between them: the base sees before it counts.
    items = (*(str(corner + 1) for corner in corners), ";", *turns)
    return Scene(key, count, count - counted[-1], items, partial(render, rng.getrandbits(32), corners))


def render(seed: int, corners: list[int]) -> Frames:
    rng = random.Random(seed)
    pictures = [cell(rng, "red", size=14, middle=CORNERS[corner]) for corner in corners]
    # Still for two frames: the tower sees each position once, whole, and no blend of two.
    return np.repeat(np.stack(pictures), FRAMES_PER_MOVE, axis=0)


CAPABILITY = MiniatureCapability(
    name="video",
    media="video",
    style="arrow",
    starts=range(20, 80),
    signs=("-", "-"),
    words=("right", "left", "seconds"),
    scene=scene,
)
