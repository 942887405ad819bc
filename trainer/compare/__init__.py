"""The paper's comparison: every system and seed as one plan, its answers, its tables, its report."""
