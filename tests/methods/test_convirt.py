import torch

from vlp_bench.methods.convirt import one_sentence
from vlp_bench.types import Tokens


def test_one_sentence_is_kept_with_the_special_tokens():
    sentence = torch.tensor([[-1, 0, 0, 1, 1, 2, -1], [-1, 0, 0, 0, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1]])
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1, 1] + [0] * 5]).bool()
    text = Tokens(torch.zeros(3, 7, dtype=torch.long), mask, sentence, sentence)
    kept = one_sentence(text, torch.tensor([0.5, 0.99, 0.3])).mask
    assert kept.int().tolist() == [[1, 0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    draws = torch.linspace(0, 0.999, 300)
    chosen = [int(text.sentence[0][one_sentence(text, d.repeat(3)).mask[0]].max()) for d in draws]
    assert [chosen.count(i) for i in range(3)] == [100, 100, 100]
