"""Random numbers of a step: new ones in training, the same ones for the same study in validation."""

import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _shifted(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical right shift."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hashed(key: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Numbers in [0, 1) that look random and depend on the keys alone (Steele et al. 2014, SplitMix64)."""
    x = key * -7046029254386353131  # 64-bit constants as signed integers; products wrap
    x = (x ^ _shifted(x, 30)) * -4658895280553007687
    x = (x ^ _shifted(x, 27)) * -7723592293110705685
    return _shifted(x ^ _shifted(x, 31), 40) / 2**24


class Draws:
    """Uniform numbers in [0, 1) for one batch; each purpose has its own.

    Args:
        study: number of each sample's study.
        fresh: draw from torch's generator, which the engine seeds for each step and process. Otherwise the numbers are
            functions of the studies, so that validation sees the same every time on any number of processes.
    """

    def __init__(self, study: Int[Tensor, "B"], fresh: bool) -> None:
        self.study, self.fresh = study, fresh

    def __call__(self, purpose: str, columns: Int[Tensor, "N"]) -> Float[Tensor, "B N"]:
        """One number for each sample and column, where `columns` number the positions, or other studies."""
        return self._numbers(purpose, self.study, columns)

    def shared(self, purpose: str, columns: Int[Tensor, "N"]) -> Float[Tensor, "1 N"]:
        """One number for each column, for the whole batch."""
        return self._numbers(purpose, self.study.new_zeros(1), columns)

    def _numbers(self, purpose: str, rows: Int[Tensor, "B"], columns: Int[Tensor, "N"]) -> Float[Tensor, "B N"]:
        if self.fresh:
            return torch.rand(len(rows), len(columns), device=rows.device)
        key = rows[:, None] * 0x10000001B + columns[None] + 1
        return hashed(key * 0x100000001 + zlib.crc32(purpose.encode()))
