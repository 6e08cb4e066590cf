"""Benchmarks: `python -m tests.benchmarks` compares minigrad and lora with their peers.

In reading order: `workload` says what a benchmark consists of, `workloads/` has all benchmarks,
`driver` and `contender` measure, `report` and `picture` show the results.
"""
