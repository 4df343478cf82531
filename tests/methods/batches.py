"""Batches in another order or in part."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch


def rows_of(batch: Any, rows: Sequence[int]) -> Any:
    """The samples `rows` of a batch, in that order."""
    if dataclasses.is_dataclass(batch):
        return type(batch)(**{f.name: rows_of(getattr(batch, f.name), rows) for f in dataclasses.fields(batch)})
    if isinstance(batch, int | None):
        return batch
    return batch[list(rows)] if isinstance(batch, torch.Tensor) else tuple(batch[i] for i in rows)
