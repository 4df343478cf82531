import math

import pytest
import torch
from torch.autograd import gradcheck

from vlp_bench.losses.contrastive import info_nce, retrieval_accuracy, similarity
from vlp_bench.losses.precision import unit


def rows(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_info_nce_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # Logits are 2 for the partner and 0 for the other.
    assert info_nce(a, a, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert info_nce(a, a.flip(0), 0.5).item() == pytest.approx(2 + math.log(1 + math.exp(-2)))


def test_info_nce_of_uninformative_embeddings_is_log_n():
    assert info_nce(torch.ones(7, 3), torch.ones(7, 3), 0.1).item() == pytest.approx(math.log(7))


def test_info_nce_agrees_with_a_loop():
    v, t, tau = unit(rows(5, 4)), unit(rows(5, 4, seed=1)), 0.07
    expected = 0.0
    for i in range(5):
        scores = [math.exp(sum((v[i] * t[j]).tolist()) / tau) for j in range(5)]
        expected -= math.log(scores[i] / sum(scores)) / 5
    assert info_nce(v, t, tau).item() == pytest.approx(expected, rel=1e-12)


def test_local_rows_with_gathered_columns_average_to_the_whole():
    v, t = unit(rows(6, 4)), unit(rows(6, 4, seed=1))
    halves = [info_nce(v[i : i + 3], t, 0.1, i) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, info_nce(v, t, 0.1))


def test_info_nce_gradient():
    assert gradcheck(lambda a, b: info_nce(a, b, 0.3, 1), (rows(3, 4).requires_grad_(), rows(5, 4).requires_grad_()))


def test_retrieval_accuracy_by_hand():
    image = torch.eye(4)
    text = torch.eye(4)[[1, 0, 2, 3]] + 0.1 * torch.eye(4)
    assert retrieval_accuracy(image, image, 1).item() == 100
    assert retrieval_accuracy(image, text, 1).item() == 50
    assert retrieval_accuracy(image, text, 2).item() == 100


def test_collapsed_embeddings_retrieve_nothing():
    assert retrieval_accuracy(torch.ones(8, 3), torch.ones(8, 3), 5).item() == 0


def test_products_leave_autocast():
    x = unit(rows(4, 8, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(similarity(x, x, 0.07), x @ x.T / 0.07) is False
        scores = similarity(x, x, 0.07)
        assert similarity(x.bfloat16(), x.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(scores, x @ x.T / 0.07)
