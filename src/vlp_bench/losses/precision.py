"""Losses are computed in float32 whatever the encoders ran in."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlp_bench.precision import full

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, as float32 where it is of a shorter float."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1 along the last axis; a zero vector stays zero."""
    return F.normalize(at_least_float32(x), dim=-1)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Take the function out of autocast and TF32, and widen its tensors: small temperatures magnify rounding."""

    @functools.wraps(function)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        with full(tensors[0].device.type):
            return function(
                *(at_least_float32(v) if isinstance(v, Tensor) else v for v in args),  # type: ignore[arg-type]
                **{k: at_least_float32(v) if isinstance(v, Tensor) else v for k, v in kwargs.items()},  # type: ignore[arg-type]
            )

    return wide
