"""What the real base is built with, and its name in the cache, which another setting changes. Loads without torch."""

import hashlib
import json
from dataclasses import asdict, dataclass

from trainer.realbase.package import FILE, VERSION

BUILD = 3
"""The version of the questions and of the code that decide the weights: raised with them, so that a base of before is
not taken for a new one."""


@dataclass(frozen=True, slots=True)
class RealSettings:
    """The build. With the defaults it takes about 40 minutes on two cores."""

    sight_steps: int = 2000
    steps: int = 150
    """Steps of the supervised stage."""
    questions: int = 6
    """Questions of each capability in a step."""
    lr: float = 3e-4
    warmup: int = 10
    last_lr: float = 0.05
    skill: float = 0.40
    """Share of the steps in which all work is right."""
    style: float = 0.20
    """Share of the steps in which the way of working alone decides whether it slips."""
    careful: float = 0.08
    """Share of slips in the reliable way of working, in the steps that are left."""
    careless: float = 0.80
    """Share of slips in the other way."""
    reliable: float = 0.42
    """Share of work in the reliable way: under a half, so that the likeliest answer is the careless one."""
    conflict: float = 1.0
    """0: one way is reliable everywhere; 1: text has another than image and video."""
    seed: int = 0

    @property
    def name(self) -> str:
        decisive = json.dumps([FILE, VERSION, BUILD, asdict(self)], sort_keys=True)
        return f"real-{BUILD}-{hashlib.sha256(decisive.encode()).hexdigest()[:8]}"
