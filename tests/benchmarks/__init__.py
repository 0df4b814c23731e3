"""Benchmarks: each prints one table, and compares ratios within one run on one machine."""
