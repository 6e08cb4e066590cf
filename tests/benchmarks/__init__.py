"""Benchmarks: our time beside that of the peers, measured in one run. `python -m tests.benchmarks`."""
