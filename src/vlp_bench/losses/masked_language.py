"""Masked language modelling: which words are hidden, and what it costs not to guess them."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.losses.precision import full_precision

#: label of a position that nobody has to guess
IGNORE = -100


def mask_words(
    ids: Int[Tensor, "B T"],
    words: Bool[Tensor, "B T"],
    draw: Float[Tensor, "B T"],
    replacement: Int[Tensor, "B T"],
    mask_id: int,
    share: float = 0.15,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Hide a share of the word pieces as BERT does: of ten, eight by [MASK], one by another piece, one not at all.

    Where a text has no piece that the draw hides, its first becomes [MASK], so that every text has something to guess.

    Args:
        ids: word pieces.
        words: True on pieces that may be hidden.
        draw: uniform in [0, 1).
        replacement: pieces to take for one in ten.
        mask_id: of [MASK].
        share: of the pieces that are hidden on average.

    Returns:
        the pieces as the encoder sees them, and the labels: the piece at hidden positions, IGNORE elsewhere.
    """
    place = draw / share
    first = torch.arange(ids.shape[1], device=ids.device) == 0
    forced = words & first & ~(words & (place < 1)).any(1, keepdim=True)
    hidden = (words & (place < 0.8)) | forced
    replaced = words & (place >= 0.8) & (place < 0.9) & ~forced
    shown = torch.where(replaced, replacement, ids).masked_fill(hidden, mask_id)
    return shown, torch.where((words & (place < 1)) | forced, ids, IGNORE)


@full_precision
def masked_language_loss(
    logits: Float[Tensor, "M W"], pieces: Int[Tensor, "M"], count: Float[Tensor, ""] | Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of the M hidden pieces among the W of the vocabulary, summed and divided by `count`.

    With M for `count` it is the mean. On several processes `count` is the mean of their Ms: the gradient, averaged over
    processes, is then that of one process with the joined batch.
    """
    return F.cross_entropy(logits, pieces, reduction="sum") / count
