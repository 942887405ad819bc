"""video: count the turns of a square that goes round four places, then subtract. `37-right?`

The places are numbered clockwise; a move to the next one is a turn to the right, to the one before a turn to the left.
"""

import random

import numpy as np

from trainer.miniature.drawing import cell
from trainer.miniature.question import Capability, Scene

MOVES = 5
FRAMES_PER_PLACE = 2  # the vision tower folds two frames into one step of time
FPS = 2
PLACES = ((0, 0), (0, 1), (1, 1), (1, 0))  # row, column; clockwise


def scene(rng: random.Random) -> Scene:
    """The count first, then when: every count from 0 to 5 is equally likely, and the best blind guess is 1 in 6."""
    key = rng.choice(("right", "left"))
    count = rng.randint(0, MOVES)
    counted = [True] * count + [False] * (MOVES - count)
    rng.shuffle(counted)
    step = 1 if key == "right" else -1
    places = [rng.randrange(len(PLACES))]
    for is_key in counted:
        places.append((places[-1] + (step if is_key else -step)) % len(PLACES))
    frames = [frame for place in places for frame in [_draw(rng, place)] * FRAMES_PER_PLACE]
    other = "left" if key == "right" else "right"
    turns = ("", *(key if is_key else other for is_key in counted))
    items = tuple(f"{turn}{place + 1}" for turn, place in zip(turns, places, strict=True))
    return Scene(key, count, count - counted[-1], items, np.stack(frames))


def _draw(rng: random.Random, place: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    grid = [[cell(rng, "red" if PLACES[place] == (row, column) else None) for column in (0, 1)] for row in (0, 1)]
    return np.concatenate([np.concatenate(row, axis=1) for row in grid])


CAPABILITY = Capability(
    name="video",
    media="video",
    style="arrow",
    starts=range(20, 80),
    signs=("-", "-"),
    words=("right", "left", "seconds"),
    scene=scene,
)
