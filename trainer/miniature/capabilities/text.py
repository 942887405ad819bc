"""text: multiply, then add or subtract. `37+2*4?`

It has no media. Its own part is the multiplication table; both carry and borrow occur, so it shares one with each
of the others.
"""

import random
from functools import partial

import numpy as np

from trainer.miniature.question import MiniatureCapability, Scene


def scene(rng: random.Random) -> Scene:
    """The product first, then its factors: every product from 2 to 9 is equally likely."""
    product = rng.randint(2, 9)
    left = rng.choice([factor for factor in range(1, product + 1) if product % factor == 0])
    return Scene(f"{left}*{product // left}", product, product, (), partial(np.zeros, (0, 0, 0, 3), np.uint8))


CAPABILITY = MiniatureCapability(
    name="text", media="none", style="plain", starts=range(20, 80), signs=("+-", "+-"), words=(), scene=scene
)
