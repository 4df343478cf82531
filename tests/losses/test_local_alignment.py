import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from vlp_bench.losses.local_alignment import attend, clipped_shares, quantile, shares, token_contrast
from vlp_bench.losses.precision import unit


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])


def looped(tokens, attended, weight, tau, mask):
    """Both directions of the weighted cross-entropy, one number at a time."""
    found = found_by = 0.0
    for b in range(len(tokens)):
        real = [j for j in range(tokens.shape[1]) if mask[b, j]]
        for j in real:
            score = {k: (tokens[b, j] @ attended[b, k]).item() / tau for k in real}
            back = {k: (tokens[b, k] @ attended[b, j]).item() / tau for k in real}
            w = weight[b, j].item() / len(tokens)
            found += w * (math.log(sum(map(math.exp, score.values()))) - score[j])
            found_by += w * (math.log(sum(map(math.exp, back.values()))) - back[j])
    return found, found_by


@pytest.mark.parametrize("mask", [None, MASK])
def test_token_contrast_agrees_with_a_loop(mask):
    tokens, attended = unit(rows(2, 4, 5)), unit(rows(2, 4, 5, seed=1))
    weight = shares(rows(2, 4, seed=2).abs() * (1 if mask is None else mask))
    got = token_contrast(tokens, attended, weight, 0.1, mask)
    expected = looped(tokens, attended, weight, 0.1, torch.ones(2, 4).bool() if mask is None else mask)
    assert [x.item() for x in got] == pytest.approx(expected, rel=1e-12)


def test_token_contrast_by_hand():
    eye = torch.eye(2)[None]
    weight = torch.tensor([[0.25, 0.75]])
    expected = math.log(1 + math.exp(-10))
    assert [x.item() for x in token_contrast(eye, eye, weight, 0.1)] == pytest.approx([expected, expected], abs=1e-6)
    # The first token attended to nothing of use, the second to its own.
    attended = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    found, _ = token_contrast(eye, attended, weight, 1.0)
    assert found.item() == pytest.approx(0.25 * math.log(2) + 0.75 * math.log(1 + math.exp(-1)), rel=1e-6)


def test_masked_tokens_change_neither_loss_nor_gradient():
    tokens, attended = rows(2, 4, 5), rows(2, 4, 5, seed=1)
    weight = shares(MASK.double())
    results = []
    for filling in (0.0, 100.0):
        a, b = (torch.where(MASK[..., None], x, filling).requires_grad_() for x in (tokens, attended))
        loss = sum(token_contrast(a, b, weight, 0.1, MASK))
        results.append((loss, *torch.autograd.grad(loss, (a, b))))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)
    assert (results[1][1][~MASK] == 0).all()


def test_gradients():
    a, b, weight = rows(2, 4, 3).requires_grad_(), rows(2, 4, 3, seed=1).requires_grad_(), shares(MASK.double())
    assert gradcheck(lambda x, y: token_contrast(x, y, weight, 0.5, MASK), (a, b))
    assert gradcheck(lambda x, y: attend(x, y, 0.5, MASK), (rows(2, 3, 3).requires_grad_(), b))


def test_attention_is_a_mean_of_real_context():
    context = rows(2, 4, 3)
    out = attend(torch.zeros(2, 1, 3, dtype=torch.float64), context, 0.1, MASK)
    torch.testing.assert_close(out[0, 0], context[0, :3].mean(0))
    torch.testing.assert_close(out[1, 0], context[1, :2].mean(0))


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12), min_size=1, max_size=4), st.floats(0, 1))
def test_quantile_is_torch_quantile_of_the_masked(entries, q):
    length = max(map(len, entries))
    x = torch.zeros(len(entries), length, dtype=torch.float64)
    mask = torch.zeros_like(x, dtype=torch.bool)
    for i, row in enumerate(entries):
        # From the back, so that real entries do not come first.
        x[i, length - len(row) :] = torch.tensor(row, dtype=torch.float64)
        mask[i, length - len(row) :] = True
    expected = [torch.quantile(torch.tensor(row, dtype=torch.float64), q) for row in entries]
    torch.testing.assert_close(quantile(x, mask, q)[:, 0], torch.stack(expected))


def test_clipped_shares_by_hand():
    # Quantiles of 1..11 at 10 and 90 % are 2 and 10; the zero is not among them.
    weight = torch.cat([torch.zeros(1), torch.arange(1, 12)])[None]
    clipped = torch.tensor([0, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10.0])
    torch.testing.assert_close(clipped_shares(weight), (clipped / clipped.sum())[None])


def test_weights_of_nothing_are_zero():
    assert clipped_shares(torch.zeros(2, 3)).tolist() == shares(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
