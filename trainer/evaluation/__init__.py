"""How good models are on held-out questions, and how alike."""
