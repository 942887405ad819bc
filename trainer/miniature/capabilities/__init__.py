"""The toy capabilities, a file each: a module here with a `CAPABILITY` is registered under its name."""

import importlib
import pkgutil

from adapters.errors import UserError
from trainer.miniature.question import MiniatureCapability


def _registered() -> dict[str, MiniatureCapability]:
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found = [module.CAPABILITY for module in modules if hasattr(module, "CAPABILITY")]
    return {capability.name: capability for capability in found}


CAPABILITIES = _registered()


def capability(name: str) -> MiniatureCapability:
    if name not in CAPABILITIES:
        raise UserError(f"no miniature capability {name!r}: there are {', '.join(sorted(CAPABILITIES))}")
    return CAPABILITIES[name]
