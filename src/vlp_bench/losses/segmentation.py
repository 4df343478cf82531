"""Losses of segmentation, from logits; what is not known of an image counts nowhere.

B images, L labels (one binary mask each), H W pixels. `known` is broadcast over the pixels where its last axes are 1.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@full_precision
def focal_loss(
    logits: Float[Tensor, "B L H W"],
    masks: Float[Tensor, "B L H W"],
    known: Bool[Tensor, "B L _ _"] | None = None,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Mean over the known pixels of (1 - p)^gamma * -log p, p being the probability of the truth (Lin et al., 2017).

    Args:
        logits: one per pixel and label.
        masks: 1 inside, 0 outside.
        known: which entries count; all of them by default. Without any the loss is 0.
        gamma: how much less a pixel counts that is right already; 0 is cross-entropy.
    """
    signed = torch.where(masks > 0.5, logits, -logits)
    terms = -F.logsigmoid(signed) * (gamma * F.logsigmoid(-signed)).exp()
    if known is None:
        return terms.mean()
    known = known.expand_as(terms)
    return torch.where(known, terms, 0.0).sum() / known.sum().clamp(min=1)


@full_precision
def soft_dice(
    logits: Float[Tensor, "B L H W"],
    masks: Float[Tensor, "B L H W"],
    known: Bool[Tensor, "B L _ _"] | None = None,
    smooth: float = 1.0,
) -> Float[Tensor, " L"]:
    """Dice of the probabilities per label, over all known pixels of the batch together.

    (2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth); 1 for a label of which nothing is known.
    """
    probabilities = logits.sigmoid()
    if known is not None:
        probabilities, masks = torch.where(known, probabilities, 0.0), torch.where(known, masks, 0.0)
    overlap, total = (probabilities * masks).sum((0, 2, 3)), (probabilities + masks).sum((0, 2, 3))
    return (2 * overlap + smooth) / (total + smooth)


def _over_labels(terms: Float[Tensor, " L"], known: Bool[Tensor, "B L _ _"] | None) -> Float[Tensor, ""]:
    """Mean over the labels of which something is known."""
    if known is None:
        return terms.mean()
    counted = known.any(0).flatten(1).any(1)
    return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)


def dice_loss(
    logits: Float[Tensor, "B L H W"],
    masks: Float[Tensor, "B L H W"],
    known: Bool[Tensor, "B L _ _"] | None = None,
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    """1 - soft Dice, mean over the labels (PRIOR)."""
    return _over_labels(1 - soft_dice(logits, masks, known, smooth), known)


def mixed_loss(
    logits: Float[Tensor, "B L H W"],
    masks: Float[Tensor, "B L H W"],
    known: Bool[Tensor, "B L _ _"] | None = None,
    alpha: float = 10.0,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Weighted focal loss - log(soft Dice), the latter as mean over the labels (MGCA's code; one label there)."""
    dice = _over_labels(-soft_dice(logits, masks, known).log(), known)
    return alpha * focal_loss(logits, masks, known, gamma) + dice
