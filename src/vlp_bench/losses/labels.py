"""Supervision by labels of which some are not known."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp_bench.distributed import all_reduce
from vlp_bench.losses.precision import full_precision


@full_precision
def label_loss(logits: Float[Tensor, "B L"], labels: Float[Tensor, "B L"], world: int = 1) -> Float[Tensor, ""]:
    """Binary cross-entropy over the labels that are 0 or 1; -1 (uncertain) and nan (unknown) do not count.

    Args:
        logits: one per label.
        labels: 1, 0, -1 or nan.
        world: number of processes. The mean is over the known labels of all of them, so that its gradient, averaged
            over processes, is that of the joined batch.
    """
    known = labels >= 0
    terms = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).nan_to_num(), reduction="none")
    count = all_reduce(known.sum().to(terms.dtype))
    return torch.where(known, terms, 0.0).sum() * world / count.clamp(min=1)
