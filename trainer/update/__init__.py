"""What becomes of the weights."""
