"""Measurements behind the figures and defaults; each runs as `python -m benchmarks.NAME`."""
