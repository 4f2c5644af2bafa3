"""Comparisons, measurements and trials by fire: run from the root, `python -m benchmarks.NAME` or as files."""
