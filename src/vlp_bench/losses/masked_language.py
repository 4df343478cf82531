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


def hide_to_write(
    words: Int[Tensor, "B T"],
    real: Bool[Tensor, "B T"],
    draw: Float[Tensor, "B T"],
    end: Float[Tensor, "B"],
    mask_id: int,
    share: float = 0.15,
    most: int | None = None,
    end_share: float = 0.0,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Hide word pieces as MedViLL's code does to learn to write: all of them by [MASK], the final [SEP] among them.

    There, `most` is 3 and `end_share` one half.

    Args:
        words: word pieces and [SEP], padded, int64.
        real: False on padding.
        draw: uniform; of each text, the pieces with the lowest are hidden.
        end: uniform in [0, 1).
        mask_id: of [MASK].
        share: of a text's pieces that are hidden, at least one.
        most: how many are hidden at most; None is no limit.
        end_share: how often the last of them is the final [SEP] instead, which may then be asked for twice.

    Returns:
        the pieces as the model sees them, up to M places that are hidden in each text, and which of the M count.
    """
    length = real.sum(1)
    count = (share * length.to(draw.dtype)).round().long().clamp(min=1, max=most)
    width = max(1, min(round(share * words.shape[1]) + 1, words.shape[1] if most is None else most))
    places = draw.masked_fill(~real, torch.inf).argsort(1)[:, :width]
    number = torch.arange(width, device=words.device)
    forced = (end < end_share)[:, None] & (number == count[:, None] - 1)
    places = torch.where(forced, length[:, None] - 1, places)
    counted = number < count[:, None]
    # A place may stand twice among the M, once without counting: what counts wins.
    hidden = torch.zeros_like(words).scatter_add(1, places, counted.long()) > 0
    return words.masked_fill(hidden, mask_id), places, counted


@full_precision
def writing_loss(
    logits: Float[Tensor, "B M W"], pieces: Int[Tensor, "B M"], counted: Bool[Tensor, "B M"], drop_worst: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the hidden pieces that count, as MedViLL's code has it in fine-tuning.

    Args:
        logits: at the hidden places.
        pieces: what is hidden there, int64.
        counted: which of the places count.
        drop_worst: share of the texts that are left out, those with the largest loss.

    Returns:
        the sum over the kept texts, divided by the number of their places that count (1e-5 added, as there).
    """
    terms = F.cross_entropy(logits.transpose(1, 2), pieces, reduction="none") * counted
    kept = terms.sum(1).topk(int(len(terms) * (1 - drop_worst)), largest=False)
    return kept.values.sum() / (counted[kept.indices].sum() + 1e-5)
