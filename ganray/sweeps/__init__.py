"""Sweeps: plans of many runs, their results, statistics and reports."""
