"""From word pieces to words, for a whole batch at once."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vlp_bench.losses.precision import full_precision
from vlp_bench.types import Tokens


def word_slots(index: Tokens) -> Int[Tensor, "B T"]:
    """Number of the word that each piece is part of: 0 for [CLS], then the words, then [SEP]; -1 on padding."""
    starts = (index.word < 0) | (index.word != index.word.roll(1, dims=1))
    return ((starts & index.mask).cumsum(1) - 1).masked_fill(~index.mask, -1)


@full_precision
def sum_pieces(x: Float[Tensor, "B T D"], slots: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Sum the vectors of the pieces of each word; slots that no piece has are zero.

    A product with the one-hot slots rather than a scatter: exact, and deterministic on every device.
    """
    onehot = F.one_hot(slots + 1, slots.shape[1] + 1)[..., 1:]
    return onehot.to(x.dtype).transpose(1, 2) @ x
