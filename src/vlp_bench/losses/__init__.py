"""Losses as pure functions of tensors, in the notation of the papers."""
