import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from vlp_bench.losses.precision import unit
from vlp_bench.losses.prototypes import sinkhorn, swapped_prediction


def cosines(samples: int, prototypes: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        unit(torch.randn(samples, 8, generator=generator, dtype=dtype))
        @ unit(torch.randn(prototypes, 8, generator=generator, dtype=dtype)).T
    )


def textbook(logits, epsilon, iterations):
    """Sinkhorn-Knopp with its constants, one entry at a time."""
    samples, prototypes = logits.shape
    q = [[math.exp(logits[b, k].item() / epsilon) for b in range(samples)] for k in range(prototypes)]
    grand = sum(map(sum, q))
    q = [[x / grand for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / sum(row) / prototypes for x in row] for row in q]
        columns = [sum(row[b] for row in q) for b in range(samples)]
        q = [[x / columns[b] / samples for b, x in enumerate(row)] for row in q]
    columns = [sum(row[b] for row in q) for b in range(samples)]
    return torch.tensor([[q[k][b] / columns[b] for k in range(prototypes)] for b in range(samples)], dtype=logits.dtype)


@pytest.mark.parametrize("iterations", [1, 3, 20])
def test_sinkhorn_agrees_with_the_textbook(iterations):
    logits = cosines(6, 5)
    torch.testing.assert_close(sinkhorn(logits, 0.05, iterations), textbook(logits, 0.05, iterations))


def test_sinkhorn_by_hand():
    # Both samples prefer the first prototype, the first sample more so: equal use sends the second one elsewhere.
    codes = sinkhorn(torch.tensor([[1.0, 0.0], [0.9, 0.0]]), 0.05, 100)
    torch.testing.assert_close(codes.sum(0), torch.ones(2))
    # exp(20), exp(18): the fixed point has the odds sqrt(exp(20) / exp(18)) = e.
    torch.testing.assert_close(codes[0, 0] / codes[0, 1], torch.tensor(math.e))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_codes_are_distributions(samples, prototypes, seed):
    codes = sinkhorn(cosines(samples, prototypes, seed, torch.float32), 0.05, 3)
    assert (codes >= 0).all()
    torch.testing.assert_close(codes.sum(1), torch.ones(samples))


def test_codes_follow_the_order_of_the_samples():
    logits, order = cosines(6, 5), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(sinkhorn(logits[order], 0.05, 3), sinkhorn(logits, 0.05, 3)[order])


def test_two_parts_that_share_their_sums_equal_the_whole():
    logits, barrier, seen, codes = cosines(6, 5), threading.Barrier(2, timeout=20), {}, {}

    def work(rank: int) -> None:
        def total(x: torch.Tensor) -> torch.Tensor:
            seen[rank] = x
            barrier.wait()
            both = seen[0] + seen[1]
            barrier.wait()
            return both

        codes[rank] = sinkhorn(logits.chunk(2)[rank], 0.05, 3, total)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    torch.testing.assert_close(torch.cat([codes[0], codes[1]]), sinkhorn(logits, 0.05, 3))


def test_sinkhorn_is_computed_in_float32_and_has_no_gradient():
    logits = cosines(6, 5, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        codes = sinkhorn(logits, 0.05, 3)
        assert sinkhorn(logits.bfloat16(), 0.05, 3).dtype == torch.float32
    assert not codes.requires_grad
    torch.testing.assert_close(codes, sinkhorn(logits, 0.05, 3))


def test_swapped_prediction_by_hand():
    logits, codes = torch.tensor([[0.2, 0.0]]), torch.tensor([[0.75, 0.25]])
    expected = -(0.75 * -math.log(1 + math.exp(-1)) + 0.25 * -math.log(1 + math.exp(1)))
    assert swapped_prediction(logits, codes, 0.2).item() == pytest.approx(expected)
    assert gradcheck(
        lambda z: swapped_prediction(z, sinkhorn(cosines(3, 4), 0.05, 3), 0.2), cosines(3, 4).requires_grad_()
    )
