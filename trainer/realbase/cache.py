"""Where the real base lies once it is built: in the user's cache, under the name of its settings.

Loads without torch, for everything that looks for a base asks here. Left out: building it (`build`).
"""

import os
from pathlib import Path

from trainer.realbase.settings import RealSettings


def cached(settings: RealSettings) -> Path:
    """The folder of a build, which may not be there yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "coevo" / "bases" / settings.name


REAL = "real"
BASE = cached(RealSettings())
"""The base that a recipe calls so."""
