"""Supervision by labels of which some are not known."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@full_precision
def label_loss(
    logits: Float[Tensor, "B L"], labels: Float[Tensor, "B L"], average: Callable[[Tensor], Tensor] = lambda x: x
) -> Float[Tensor, ""]:
    """Binary cross-entropy over the labels that are 0 or 1; -1 (uncertain) and nan (unknown) do not count.

    Args:
        logits: one per label.
        labels: 1, 0, -1 or nan.
        average: averages a count over processes; with it the mean of the result over processes, and of its gradient,
            is that of one process with the joined batch.
    """
    known = labels >= 0
    terms = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).nan_to_num(), reduction="none")
    count = average(known.sum().to(terms.dtype))
    return torch.where(known, terms, 0.0).sum() / count.clamp(min=torch.finfo(terms.dtype).tiny)
