"""Benchmarks: our times beside those of the peers, in one run. `python -m tests.benchmarks`."""
