"""Does this report belong to this image? Pairs that match, pairs that do not, and the loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp_bench.losses.precision import full_precision


def label_sets_differ(a: Float[Tensor, "B L"], b: Float[Tensor, "N L"]) -> Bool[Tensor, "B N"]:
    """Whether two studies differ in what they are positive (1) for; uncertain (-1), absent and unknown (nan) alike."""
    return ((a == 1)[:, None] != (b == 1)[None]).any(-1)


def choose_reports(
    own: Int[Tensor, "B"], differs: Bool[Tensor, "B N"], priority: Float[Tensor, "B N"], swap: Bool[Tensor, "B"]
) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
    """Report of each image: its own, or where `swap` says so one of a study with other labels.

    Args:
        own: which of the N reports belongs to the image.
        differs: reports that are allowed as negatives.
        priority: random; the allowed report with the highest is taken. Not negative.
        swap: images that shall get a negative; one for which there is none keeps its own report.

    Returns:
        index of the report, and whether image and report match.
    """
    swapped = swap & differs.any(1)
    return torch.where(swapped, priority.masked_fill(~differs, -1).argmax(1), own), ~swapped


@full_precision
def matching_loss(logits: Float[Tensor, "B 2"], aligned: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
    """Cross-entropy of "no" and "yes", mean over pairs: the binary cross-entropy of the difference of the logits."""
    return F.cross_entropy(logits, aligned.long())
