"""The commands of `coevo`, one module each."""
