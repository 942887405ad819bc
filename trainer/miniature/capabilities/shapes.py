"""shapes: count one shape in a grid of 2 x 3 whose colours vary, then subtract. `37-disc?`

It looks at what `image` looks at and reckons as `video` does, and its reliable style is neither's.
"""

import random
from functools import partial

from trainer.miniature.capabilities.image import COLUMNS, ROWS
from trainer.miniature.drawing import COLOURS, SHAPES, cell, grid
from trainer.miniature.question import Frames, MiniatureCapability, Scene


def scene(rng: random.Random) -> Scene:
    """The count first, then where: every count from 0 to 6 is equally likely, and the best blind guess is 1 in 7."""
    key = rng.choice(SHAPES)
    count = rng.randint(0, ROWS * COLUMNS)
    distractors = [shape for shape in SHAPES if shape != key]
    items = [key] * count + [rng.choice(distractors) for _ in range(ROWS * COLUMNS - count)]
    rng.shuffle(items)
    colours = rng.choices(list(COLOURS), k=len(items))  # of all shapes alike: a colour must not give a shape away
    pixels = partial(render, rng.getrandbits(32), items, colours)
    return Scene(key, count, count - (items[-1] == key), tuple(items), pixels)


def render(seed: int, shapes: list[str], colours: list[str]) -> Frames:
    rng = random.Random(seed)
    cells = [cell(rng, colour, shape=shape) for shape, colour in zip(shapes, colours, strict=True)]
    return grid(cells, COLUMNS)[None]


CAPABILITY = MiniatureCapability(
    name="shapes",
    media="image",
    style="plain",
    starts=range(20, 80),
    signs=("-", "-"),
    words=SHAPES,
    scene=scene,
)
