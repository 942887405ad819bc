"""Which steps there are, and in which order."""
