"""Benchmarks: one table of methods, from teaching to judging."""
