import math

import pytest
import torch

from vlp_bench.losses.labels import label_loss
from vlp_bench.losses.word_region import partner_loss, word_region_similarity


def test_uncertain_and_unknown_labels_do_not_count():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1, 0, -1, math.nan], [math.nan, 1, 0, 1], [-1, -1, math.nan, 0]])
    known = [(i, j) for i in range(3) for j in range(4) if labels[i, j] in (0, 1)]
    slow = -sum(
        torch.log(torch.sigmoid(logits[i, j]) if labels[i, j] == 1 else 1 - torch.sigmoid(logits[i, j]))
        for i, j in known
    ) / len(known)
    loss = label_loss(logits, labels)
    assert torch.allclose(loss, slow)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert {tuple(x) for x in gradient.nonzero().tolist()} == set(known)
    nothing = label_loss(logits, torch.full_like(labels, math.nan))
    assert nothing == 0
    assert torch.autograd.grad(nothing, logits)[0].abs().max() == 0


def slow_similarity(regions, words, sharpness, emphasis):
    """One image with one report, word by word."""
    shares = torch.softmax(words @ regions.T, 0)
    total = 0
    for word, share in zip(words, shares, strict=True):
        context = torch.softmax(sharpness * share, 0) @ regions
        total = total + torch.exp(emphasis * torch.cosine_similarity(context, word, dim=0))
    return torch.log(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_word_region_similarity_against_one_pair_at_a_time(dtype):
    g = torch.Generator().manual_seed(0)
    regions, words = torch.randn(3, 6, 5, generator=g, dtype=dtype), torch.randn(4, 7, 5, generator=g, dtype=dtype)
    lengths = [7, 1, 4, 5]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    expected = torch.stack(
        [
            torch.stack([slow_similarity(r, w[:n], 4.0, 5.0) for w, n in zip(words, lengths, strict=True)])
            for r in regions
        ]
    )
    found = word_region_similarity(regions, words * mask[..., None], mask, 4.0, 5.0)
    assert torch.allclose(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-10)


def test_partner_loss_is_the_cross_entropy_of_the_own_column():
    scores = torch.tensor([[1.0, 3.0, 0.0], [0.5, 0.0, 2.0]])
    expected = -(torch.log_softmax(scores / 0.5, 1)[0, 1] + torch.log_softmax(scores / 0.5, 1)[1, 2]) / 2
    assert torch.allclose(partner_loss(scores, 0.5, offset=1), expected)
