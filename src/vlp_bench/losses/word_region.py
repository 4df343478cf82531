"""Contrast of reports with images by their words and regions: GLoRIA (Huang et al., ICCV 2021, section 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vlp_bench.losses.precision import full_precision


@full_precision
def word_region_similarity(
    regions: Float[Tensor, "Ni P E"],
    words: Float[Tensor, "Nt W E"],
    mask: Bool[Tensor, "Nt W"],
    sharpness: float,
    emphasis: float,
) -> Float[Tensor, "Ni Nt"]:
    """Z(x_v, x_t) = log sum_i exp(emphasis <c_i, t_i>), c_i the regions as word i attends to them (equations 3 to 5).

    The attention of word i on the regions is a softmax of `sharpness` times the inner products, which the authors'
    code first turns into shares over the words of the report: without that they saturate.

    Args:
        regions: v, of each image.
        words: t, of each report.
        mask: True on words.
        sharpness: 1 / tau_1 (their temp1, 4).
        emphasis: 1 / tau_2 (their temp2, 5).
    """
    products = torch.einsum("ipe,twe->itwp", regions, words)
    shares = products.masked_fill(~mask[None, :, :, None], torch.finfo(products.dtype).min).softmax(2)
    attention = (sharpness * shares).softmax(3)
    # <c, t> and |c| follow from the products and the regions' Gram matrix: c itself, of E numbers a word and pair, is
    # never made
    inner = (attention * products).sum(3)
    gram = regions @ regions.transpose(1, 2)
    length = (torch.einsum("itwp,ipq->itwq", attention, gram) * attention).sum(3).clamp(min=0).sqrt()
    cosine = inner / (length * words.norm(dim=2)[None]).clamp(min=1e-8)
    return (emphasis * cosine).masked_fill(~mask[None], float("-inf")).logsumexp(2)


@full_precision
def partner_loss(scores: Float[Tensor, "B N"], temperature: float, offset: int = 0) -> Float[Tensor, ""]:
    """Cross-entropy of finding the partner, column `offset` + i of row i, by its score."""
    partner = torch.arange(offset, offset + len(scores), device=scores.device)
    return F.cross_entropy(scores / temperature, partner)
