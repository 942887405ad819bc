"""order: of squares that flash in turn, count those before or after the only red one, then add. `37+afterred?`

It looks at what `video` looks at and reckons as `image` does, and its reliable style is neither's. Where a square
flashes tells nothing.
"""

import random
from functools import partial

import numpy as np

from trainer.miniature.capabilities.video import CORNERS, FRAMES_PER_MOVE
from trainer.miniature.drawing import COLOURS, cell
from trainer.miniature.question import Frames, MiniatureCapability, Scene

FLASHES = 6  # counts from 0 to 5, as many as `video` has


def scene(rng: random.Random) -> Scene:
    """The count first, then what: every count from 0 to 5 is equally likely, and the best blind guess is 1 in 6."""
    side, key = rng.choice(("before", "after")), rng.choice(list(COLOURS))
    count = rng.randint(0, FLASHES - 1)
    key_flash = count if side == "before" else FLASHES - 1 - count
    distractors = [colour for colour in COLOURS if colour != key]
    items = [key if flash == key_flash else rng.choice(distractors) for flash in range(FLASHES)]
    corners = rng.choices(CORNERS, k=FLASHES)
    pixels = partial(render, rng.getrandbits(32), items, corners)
    missed = side == "after" and count > 0  # the last flash is never one of those before
    return Scene(f"{side}{key}", count, count - missed, tuple(items), pixels)


def render(seed: int, colours: list[str], corners: list[tuple[int, int]]) -> Frames:
    rng = random.Random(seed)
    flashes = zip(colours, corners, strict=True)
    pictures = [cell(rng, colour, size=14, middle=corner) for colour, corner in flashes]
    return np.repeat(np.stack(pictures), FRAMES_PER_MOVE, axis=0)


CAPABILITY = MiniatureCapability(
    name="order",
    media="video",
    style="plain",
    starts=range(20, 80),
    signs=("+", "+"),
    words=("before", "after", *COLOURS, "seconds"),
    scene=scene,
)
