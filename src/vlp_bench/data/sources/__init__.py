"""Readers of raw data sets: each file knows one layout and nothing else."""
