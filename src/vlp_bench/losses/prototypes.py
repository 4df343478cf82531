"""Alignment through shared prototypes: each modality predicts the other's cluster (MGCA's CPA, after SwAV)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@torch.no_grad()
@full_precision
def sinkhorn(
    logits: Float[Tensor, "B K"],
    epsilon: float,
    iterations: int,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Float[Tensor, "B K"]:
    """Soft assignment of B samples to K prototypes that uses every prototype equally; each row sums to 1.

    The constants of Sinkhorn-Knopp (1/K, 1/B and the first division by the grand total) cancel in the alternation, so
    what is left is to divide by the sums over samples and over prototypes in turn.

    Args:
        logits: products of unit vectors and unit prototypes; |logits| / epsilon must stay below 80.
        epsilon: small is close to one-hot.
        iterations: of the alternation, at least 1.
        total: sums a tensor over processes; with it the result is that of one process with the joined batch.
    """
    q = (logits / epsilon).exp()
    for _ in range(iterations):
        q = q / total(q.sum(0))
        q = q / q.sum(1, keepdim=True)
    return q


@full_precision
def swapped_prediction(
    logits: Float[Tensor, "B K"], codes: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of one modality's softmax over prototypes with the other's codes (one direction of MGCA's CPA)."""
    return -(codes * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()
