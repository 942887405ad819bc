"""`coevo doctor`: what this machine has, and whether a recipe fits it."""
