"""Cross-modality conditional reconstruction (PRIOR): sets of sentences that nobody ordered, and what they resemble.

Q slots of a report, K prototypes, D the width. Masks are True on real sentences.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@torch.no_grad()
@full_precision
def assign(generated: Float[Tensor, "B Q D"], targets: Float[Tensor, "B Q D"]) -> Int[Tensor, "B Q"]:
    """For each vector generated the target of its own, so that the sum of the L1 distances is least (Hungarian)."""
    # The solver refuses what is not finite; the loss that follows shall be what says so.
    cost = torch.cdist(generated, targets, p=1).nan_to_num().cpu().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(c)[1] for c in cost])).to(targets.device)


def pick(x: Float[Tensor, "B Q D"], order: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q D"]:
    """Vectors in another order: y[b, i] = x[b, order[b, i]]."""
    return x.gather(1, order[..., None].expand_as(x))


@full_precision
def l1(x: Float[Tensor, "*S"], y: Float[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Mean absolute difference over all entries."""
    return (x - y).abs().mean()


@full_precision
def quantisation_error(x: Float[Tensor, "B Q D"], prototypes: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q"]:
    """Mean absolute difference of each sentence and its mixture of prototypes (PRIOR's prototype loss)."""
    return (x - prototypes).abs().mean(-1)


@full_precision
def divergence(target: Float[Tensor, "B Q K"], logits: Float[Tensor, "B Q K"]) -> Float[Tensor, "B Q"]:
    """Kullback-Leibler divergence of each softmax over prototypes from that of its target; gradient to both."""
    log_p, log_q = F.log_softmax(target, -1), F.log_softmax(logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@full_precision
def masked_mean(values: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Sum over the real sentences, divided by how many there are."""
    return torch.where(mask, values, 0).sum() / count.clamp(min=1)
