"""Benchmarks: our figures beside those of the peers, in one run. `python -m tests.benchmarks`.

Read `workload` (what a benchmark is made of), `workloads/` (all that is measured), `driver` and
`contender` (how), `report` and `picture` (how it is shown).
"""
