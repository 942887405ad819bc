"""The architectures that a base may have, told by the `model_type` in its config.json.

All of them have the same language model, as far as adapters go: seven projections in each layer, under the same names.
They differ in where these layers lie, and in whether there is a vision tower beside them.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from adapters.errors import UserError

ADAPTER_MODULES = "coevo_adapter_modules"
"""The key of a config.json that names the projections that adapters of this base may have; without it, all seven."""


@dataclass(frozen=True, slots=True)
class Architecture:
    model_type: str
    language: str
    """The module of the language model, with its dot: what the names of its weights begin with."""
    has_vision: bool
    adapter_modules: tuple[str, ...] | None = None
    """The projections that adapters may have; None: all seven."""

    @property
    def layers(self) -> str:
        return f"{self.language}layers."


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture("qwen3_vl", "model.language_model.", has_vision=True),
        Architecture("qwen3", "model.", has_vision=False),
        Architecture("llama", "model.", has_vision=False),
    )
}


def architecture_of(config: dict[str, Any]) -> Architecture:
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise UserError(f"model_type {model_type!r}; take a base of type {', '.join(ARCHITECTURES)}")
    # A pack's attention has no window (trainer/update/attention.py), so such a base would be another model there.
    if config.get("use_sliding_window"):
        raise UserError("use_sliding_window: its layers see a part of their context; take a base that sees all of it")
    architecture, modules = ARCHITECTURES[model_type], config.get(ADAPTER_MODULES)
    return architecture if modules is None else replace(architecture, adapter_modules=tuple(modules))


def read_architecture(folder: Path) -> Architecture:
    """The architecture of the checkpoint in a folder."""
    try:
        return architecture_of(cast(dict[str, Any], json.loads((folder / "config.json").read_text())))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
