import torch

from vlp_bench.losses.words import sum_pieces, word_slots
from vlp_bench.types import Tokens


def index(*words: list[int | None]) -> Tokens:
    """Tokens of texts given as the word of each piece; None is padding, -1 special."""
    mask = torch.tensor([[w is not None for w in ws] for ws in words])
    word = torch.tensor([[-1 if w is None else w for w in ws] for ws in words])
    return Tokens(torch.ones_like(word), mask, word, word)


def test_slots_number_cls_words_and_sep():
    slots = word_slots(index([-1, 0, 0, 1, 2, -1, None], [-1, 0, -1, None, None, None, None]))
    assert slots.tolist() == [[0, 1, 1, 2, 3, 4, -1], [0, 1, 2, -1, -1, -1, -1]]


def test_an_empty_report_has_cls_and_sep():
    assert word_slots(index([-1, -1, None])).tolist() == [[0, 1, -1]]


def test_words_need_not_start_at_zero_nor_ascend():
    # A report whose sentences were put into another order.
    assert word_slots(index([-1, 5, 5, 6, 0, 0, 1, -1])).tolist() == [[0, 1, 1, 2, 3, 3, 4, 5]]


def test_pieces_are_summed_and_padding_is_dropped():
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
    slots = torch.tensor([[0, 1, 1, 2, -1]])
    assert sum_pieces(x, slots)[0, :, 0].tolist() == [1, 6, 8, 0, 0]
