"""Alignment of the parts of an image with the parts of its report.

N tokens of one kind (words, patches) attend to M tokens of the other; E is the width of the joint space. Masks are True
on real tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@full_precision
def attend(
    query: Float[Tensor, "B N E"],
    context: Float[Tensor, "B M E"],
    temperature: float,
    mask: Bool[Tensor, "B M"] | None = None,
) -> Float[Tensor, "B N E"]:
    """Attention without parameters: mean of the context, weighted by the softmax of its products with the query."""
    logits = query @ context.transpose(1, 2) / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return logits.softmax(-1) @ context


@full_precision
def token_contrast(
    tokens: Float[Tensor, "B N E"],
    attended: Float[Tensor, "B N E"],
    weight: Float[Tensor, "B N"],
    temperature: float,
    mask: Bool[Tensor, "B N"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Each token finds what it attended to among the other tokens' of its sample, and the reverse (MGCA's CTA).

    Args:
        tokens: of one kind.
        attended: for each of them, what it gathered from the other kind.
        weight: how much each token counts in its sample; zero on padding.
        temperature: divides the products.
        mask: tokens that may be found; all of them without one.

    Returns:
        the two directions, token to attended and attended to token, each a weighted sum over the tokens and a mean
        over the samples.
    """
    scores = tokens @ attended.transpose(1, 2) / temperature
    own = scores.diagonal(dim1=1, dim2=2)
    real = torch.ones_like(own, dtype=torch.bool) if mask is None else mask
    # The own score is subtracted outside the masked softmax, so that the terms of padding are finite times zero.
    found = scores.masked_fill(~real[:, None], float("-inf")).logsumexp(2) - own
    found_by = scores.masked_fill(~real[:, :, None], float("-inf")).logsumexp(1) - own
    return (weight * found).sum(1).mean(), (weight * found_by).sum(1).mean()


@full_precision
def shares(weight: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Weights of a sample, divided by their sum."""
    return weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)


@full_precision
def quantile(x: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], q: float) -> Float[Tensor, "B 1"]:
    """Quantile of the masked entries of each row, between two of them by linear interpolation."""
    ordered = x.masked_fill(~mask, float("inf")).sort(1).values
    position = q * (mask.sum(1, keepdim=True) - 1).clamp(min=0).to(x.dtype)
    below, above = ordered.gather(1, position.floor().long()), ordered.gather(1, position.ceil().long())
    return torch.lerp(below, above, position - position.floor())


@full_precision
def clipped_shares(weight: Float[Tensor, "B N"], low: float = 0.1, high: float = 0.9) -> Float[Tensor, "B N"]:
    """Clip the weights of a sample to two quantiles of its positive ones, then divide by their sum; zeros stay zero."""
    positive = weight > 0
    clipped = weight.clamp(quantile(weight, positive, low), quantile(weight, positive, high))
    return shares(torch.where(positive, clipped, 0))
