"""text: multiply, then add or subtract. `37+3*4?`

It has no media. Its own part is the multiplication table; both carry and borrow occur, so it shares one with each
of the others.
"""

import random

import numpy as np

from trainer.miniature.question import Capability, Scene

NO_FRAMES = np.zeros((0, 0, 0, 3), np.uint8)


def scene(rng: random.Random) -> Scene:
    left, right = rng.randint(2, 5), rng.randint(2, 5)
    return Scene(f"{left}*{right}", left * right, left * right, (), NO_FRAMES)


CAPABILITY = Capability(
    name="text", media="none", style="plain", starts=range(30, 70), signs=("+-", "+-"), words=(), scene=scene
)
