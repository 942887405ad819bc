"""A card on trial: `coevo bench gpu`."""

from bench.gpu.kit import add_arguments, run

__all__ = ["add_arguments", "run"]
