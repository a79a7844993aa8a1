"""Timings: `python -m benchmarks.networks`."""
