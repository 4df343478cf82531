"""Prediction of one view from another without negatives (SimSiam), for PRIOR's patches."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@full_precision
def negative_cosine(predicted: Float[Tensor, "*S D"], target: Float[Tensor, "*S D"]) -> Float[Tensor, ""]:
    """Mean of minus the cosine of prediction and target, which has no gradient."""
    return -F.cosine_similarity(predicted, target.detach(), dim=-1).mean()
