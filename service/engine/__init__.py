"""vLLM: the only folder that touches its internals."""
