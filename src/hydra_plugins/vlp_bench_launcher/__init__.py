"""Hydra finds the launcher of vlp-bench here."""
