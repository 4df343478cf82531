"""Metrics with intervals and trivial baselines."""
