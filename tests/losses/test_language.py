import math

import pytest
import torch
from torch.autograd import gradcheck

from vlp_bench.losses.language import next_words, reverse_words, word_loss

IDS = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_every_word_but_the_first_is_predicted_from_the_one_before():
    x, target = next_words(torch.arange(8.0).view(2, 4, 1), IDS, IDS != 0)
    assert x[:, 0].tolist() == [0, 1, 2, 4, 5]
    assert target.tolist() == [5, 6, 2, 7, 2]


def test_word_loss_agrees_with_a_loop():
    logits, target = rows(5, 8), [5, 6, 2, 7, 2]
    expected = 0.0
    for scores, right in zip(logits.tolist(), target, strict=True):
        expected += (math.log(sum(map(math.exp, scores))) - scores[right]) / 5
    assert word_loss(logits, torch.tensor(target)).item() == pytest.approx(expected, rel=1e-12)


def test_word_loss_of_uninformative_scores_is_log_v_and_of_no_words_is_zero():
    assert word_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6])).item() == pytest.approx(math.log(7))
    empty = torch.zeros(0, 7, requires_grad=True)
    loss = word_loss(empty, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_processes_with_unlike_numbers_of_words_average_to_the_whole():
    logits, target = rows(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])

    def average(count: torch.Tensor) -> torch.Tensor:
        return torch.full_like(count, 3.0)

    parts = [word_loss(logits[part], target[part], average) for part in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(sum(parts) / 2, word_loss(logits, target))


def test_word_loss_has_the_right_gradient_and_stays_float32_in_bfloat16():
    target = torch.tensor([1, 0, 3])
    assert gradcheck(lambda x: word_loss(x, target), rows(3, 4).requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert word_loss(rows(3, 4).bfloat16(), target).dtype == torch.float32


def test_words_are_reversed_and_padding_stays():
    assert reverse_words(IDS, IDS != 0).tolist() == [[2, 6, 5, 1], [2, 7, 1, 0]]
