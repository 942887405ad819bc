"""How a revision becomes what is served."""
