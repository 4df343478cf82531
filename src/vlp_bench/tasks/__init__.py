"""Downstream tasks: they see encoders, never a method."""
