"""The toy capabilities, a file each: a module here with a `CAPABILITY` is registered under its name."""

import importlib
import pkgutil
from collections.abc import Mapping

from adapters.errors import UserError
from trainer.miniature.question import MiniatureCapability

CAPABILITIES: dict[str, MiniatureCapability] = {}
for _module in pkgutil.iter_modules(__path__):
    # Taken if there: a file may also hold what several capabilities share.
    if _capability := getattr(importlib.import_module(f"{__name__}.{_module.name}"), "CAPABILITY", None):
        CAPABILITIES[_capability.name] = _capability


def capability(
    name: str, kind: str = "miniature", registered: Mapping[str, MiniatureCapability] = CAPABILITIES
) -> MiniatureCapability:
    """The capability of this name among those of a kind of base."""
    if name not in registered:
        raise UserError(f"no {kind} capability {name!r}: there are {', '.join(sorted(registered))}")
    return registered[name]
