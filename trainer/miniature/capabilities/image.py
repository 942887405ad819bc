"""image: count the squares of one colour in a grid of 2 x 3, then add. `37+red?`"""

import random
from functools import partial

from trainer.miniature.drawing import COLOURS, cell, grid
from trainer.miniature.question import Frames, MiniatureCapability, Scene

ROWS, COLUMNS = 2, 3


def scene(rng: random.Random) -> Scene:
    """The count first, then where: every count from 0 to 6 is equally likely, and the best blind guess is 1 in 7."""
    names = tuple(COLOURS)
    key = rng.choice(names)
    count = rng.randint(0, ROWS * COLUMNS)
    distractors = [name for name in names if name != key]
    items = [key] * count + [rng.choice(distractors) for _ in range(ROWS * COLUMNS - count)]
    rng.shuffle(items)
    # The pixels have a stream of their own: drawing them, or not, changes no later question.
    pixels = partial(render, rng.getrandbits(32), items)
    return Scene(key, count, count - (items[-1] == key), tuple(items), pixels)


def render(seed: int, items: list[str]) -> Frames:
    rng = random.Random(seed)
    return grid([cell(rng, colour) for colour in items], COLUMNS)[None]


CAPABILITY = MiniatureCapability(
    name="image",
    media="image",
    style="arrow",
    starts=range(20, 80),
    signs=("+", "+"),
    words=tuple(COLOURS),
    scene=scene,
)
