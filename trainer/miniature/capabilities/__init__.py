"""The toy capabilities, a file each: a module here with a `CAPABILITY` is registered under its name."""

import importlib
import pkgutil

from adapters.errors import UserError
from trainer.miniature.question import MiniatureCapability

CAPABILITIES: dict[str, MiniatureCapability] = {}
for _module in pkgutil.iter_modules(__path__):
    # Taken if there: a file may also hold what several capabilities share.
    if _capability := getattr(importlib.import_module(f"{__name__}.{_module.name}"), "CAPABILITY", None):
        CAPABILITIES[_capability.name] = _capability


def capability(name: str) -> MiniatureCapability:
    if name not in CAPABILITIES:
        raise UserError(f"no miniature capability {name!r}: there are {', '.join(sorted(CAPABILITIES))}")
    return CAPABILITIES[name]
