"""Where numbers must not be shorter than float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full(device_type: str) -> Iterator[None]:
    """Within it nothing is cast to a shorter float, neither by autocast nor inside a product (TF32).

    TF32 is off in the forward pass alone: gradients of what is computed here may have its ten bits.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
