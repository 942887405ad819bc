"""Side-by-side measurements: every peer in the same run, medians."""
