import itertools

import pytest
import torch
from torch import Tensor

from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.decoders import ReportDecoder
from vlp_bench.encoders.generation import (
    DecoderWriter,
    JointWriter,
    Writer,
    beam_search,
    greedy,
    next_word_states,
)
from vlp_bench.encoders.joint import JointEncoder
from vlp_bench.encoders.text import TextBackbone
from vlp_bench.losses.masked_language import hide_to_write, writing_loss
from vlp_bench.methods.medvill_official import JointEncoderOfficial

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PLACES, CHANNELS = 5, 6


def joint_model(kind=JointEncoder, attention="bar"):
    torch.manual_seed(0)
    text = TextBackbone("small", architecture=SMALL | {"max_position_embeddings": 40})
    joint = kind(CHANNELS, 16, 40, len(text.tokenizer), attention)
    # Beyond its initial scale, so that words differ.
    for parameter in [*text.parameters(), *joint.parameters()]:
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return joint.eval(), text.eval(), torch.randn(3, PLACES, CHANNELS)


def decoder():
    torch.manual_seed(1)
    made = ReportDecoder(12, 0, CHANNELS, width=16, heads=2, feedforward=24, layers=2, max_tokens=20)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return made.eval(), torch.randn(4, PLACES, CHANNELS)


def reports(text, lengths):
    torch.manual_seed(2)
    words = torch.randint(5, len(text.tokenizer), (len(lengths), max(lengths)))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return words.masked_fill(~real, text.tokenizer.pad), real


MODELS = [(JointEncoder, "bar"), (JointEncoder, "noncross"), (JointEncoderOfficial, "bi")]


@pytest.mark.parametrize(("kind", "attention"), MODELS)
def test_words_one_by_one_and_all_at_once(kind, attention):
    joint, text, features = joint_model(kind, attention)
    words, real = reports(text, [6, 4, 1])
    with torch.no_grad():
        expected = joint.predict(text, next_word_states(joint, text, features, words, real))
        writer = JointWriter(joint, text, features)
        steps = [writer.step(None if t == 0 else words[:, t - 1]) for t in range(6)]
    got = torch.stack(steps, 1)
    assert torch.allclose(got[real], expected[real], atol=1e-4)


@pytest.mark.parametrize(("kind", "attention"), MODELS)
def test_a_word_is_guessed_as_at_the_end_of_a_sequence(kind, attention):
    """The reference: a [MASK] behind the words so far, through the encoder as pre-training runs it."""
    joint, text, features = joint_model(kind, attention)
    words, real = reports(text, [5, 5, 5])
    places = torch.arange(PLACES).expand(3, -1)
    with torch.no_grad():
        states = next_word_states(joint, text, features, words, real)
        for t in range(5):
            shown = torch.cat([words[:, :t], torch.full((3, 1), text.tokenizer.mask)], 1)
            hidden = joint(text, features, places, shown, torch.ones_like(shown).bool(), "s2s")
            assert torch.allclose(states[:, t], hidden[:, -1], atol=1e-5)


def test_later_words_do_not_change_what_is_said_before_them():
    joint, text, features = joint_model()
    words, real = reports(text, [6, 6, 6])
    other = words.clone()
    other[:, 3:] = other[:, 3:].flip(1) + 1
    with torch.no_grad():
        a, b = (next_word_states(joint, text, features, w, real) for w in (words, other))
    assert torch.equal(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


def test_positions_of_the_pair():
    joint, text, features = joint_model()
    words, _ = reports(text, [4, 4, 4])
    with torch.no_grad():
        right, pair = JointWriter(joint, text, features), JointWriter(joint, text, features, pair_positions=True)
        steps = [[w.step(None if t == 0 else words[:, t - 1]) for t in range(3)] for w in (right, pair)]
    assert torch.equal(steps[0][0], steps[1][0])
    assert torch.equal(steps[0][1], steps[1][1])  # the second word has position 1 either way
    assert not torch.allclose(steps[0][2], steps[1][2])


def naive(made, memory, start, end, longest):
    """One report, word by word, through the whole decoder."""
    ids = [start]
    with torch.no_grad():
        while len(ids) <= longest:
            now = torch.tensor([ids])
            ids.append(int(made.logits(made(memory[None], now, torch.ones_like(now).bool()))[0, -1].argmax()))
            if ids[-1] == end:
                break
    return ids[1:]


def test_greedy_reports_of_a_decoder():
    made, memory = decoder()
    lengths = set()
    for end in range(3, 12):
        words, scores = greedy(DecoderWriter(made, memory, start=1), end, 0, longest=9)
        assert words.shape == scores.shape
        for row, one in zip(words.tolist(), memory, strict=True):
            expected = naive(made, one, 1, end, 9)
            assert row == expected + [0] * (len(row) - len(expected))
            lengths.add(len(expected))
        # It stopped at the longest of them.
        assert (words[:, -1] != 0).any()
    assert len(lengths) > 1


class Table(Writer):
    """Log-probabilities that depend on the last word alone, other ones in each row."""

    def __init__(self, first: Tensor, then: Tensor) -> None:
        self.first, self.then = first, then

    def step(self, last):
        return self.first if last is None else self.then[torch.arange(len(last)), last]

    def keep(self, rows):
        self.first, self.then = self.first[rows], self.then[rows]


def table(seed, vocabulary=4, count=3):
    g = torch.Generator().manual_seed(seed)
    first = torch.randn(count, vocabulary, generator=g).log_softmax(-1)
    return first, torch.randn(count, vocabulary, vocabulary, generator=g).log_softmax(-1)


def best_of_all(first, then, end, longest):
    """The likeliest report that ends, or is as long as may be, of all there are."""
    vocabulary, best = len(first), (float("-inf"), [])
    for length in range(1, longest + 1):
        for words in itertools.product(range(vocabulary), repeat=length):
            if end in words[:-1] or (words[-1] != end and length < longest):
                continue
            score = float(first[words[0]] + sum(then[a, b] for a, b in itertools.pairwise(words)))
            best = max(best, (score, list(words)))
    return best[1]


@pytest.mark.parametrize("seed", range(6))
def test_enough_beams_find_the_best_report(seed):
    first, then = table(seed)
    found = beam_search(Table(first, then), 3, 4**1, 3, 9, longest=4, to_the_end=True)
    wide = beam_search(Table(*table(seed)), 3, 4, 3, 9, longest=4)
    assert torch.equal(wide.report, found.report[:, : wide.report.shape[1]])  # stopping early changes nothing
    # Nothing that goes on after an end competes with what has not ended.
    after_end = found.words[:, :-1].gather(2, found.parents[:, 1:]) == 3
    assert after_end.any() == (found.scores < -5000).any()
    assert (found.scores[:, 1:][after_end] < -5000).all()
    for row in range(3):
        expected = best_of_all(first[row], then[row], 3, 4)
        got = wide.report[row].tolist()
        # With the last word for a state, as many beams as words lose nothing.
        assert got == expected + [9] * (len(got) - len(expected))


def test_one_beam_is_greedy():
    made, memory = decoder()
    words, _ = greedy(DecoderWriter(made, memory, 1), 5, 0, longest=8)
    found = beam_search(DecoderWriter(made, memory, 1), len(memory), 1, 5, 0, longest=8)
    length = min(words.shape[1], found.report.shape[1])
    assert torch.equal(words[:, :length], found.report[:, :length])


def test_beams_of_a_joint_encoder_follow_their_parents():
    joint, text, features = joint_model()
    end = text.tokenizer.sep
    found = beam_search(JointWriter(joint, text, features), 3, 3, end, text.tokenizer.pad, longest=5)
    with torch.no_grad():
        real = found.report != text.tokenizer.pad
        logits = joint.predict(text, next_word_states(joint, text, features, found.report, real))
    each = logits.log_softmax(-1).gather(2, found.report[..., None])[..., 0]
    assert torch.allclose((each * real).sum(1), found.scores[:, -1].amax(1), atol=1e-3)


def test_what_is_hidden_to_learn_to_write():
    real = torch.arange(40) < torch.tensor([40, 12, 2])[:, None]
    words = torch.arange(5, 45).repeat(3, 1).masked_fill(~real, 0)
    draw = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    shown, places, counted = hide_to_write(words, real, draw, torch.ones(3), 4)
    assert counted.sum(1).tolist() == [6, 2, 1]  # 15 % of the pieces, one at least
    for row in range(3):
        asked = places[row][counted[row]]
        assert set(asked.tolist()) == set((shown[row] == 4).nonzero()[:, 0].tolist())
        assert asked.tolist() == draw[row].masked_fill(~real[row], 9).argsort()[: len(asked)].tolist()
    shown, places, counted = hide_to_write(words, real, draw, torch.zeros(3), 4, most=3, end_share=0.5)
    assert counted.sum(1).tolist() == [3, 2, 1]
    assert [int(places[r][counted[r]][-1]) for r in range(3)] == [39, 11, 1]
    assert (shown[torch.arange(3), torch.tensor([39, 11, 1])] == 4).all()


def test_the_loss_of_writing():
    logits = torch.randn(2, 2, 7, generator=torch.Generator().manual_seed(0))
    pieces, counted = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, False], [True, True]])
    each = -logits.log_softmax(-1).gather(2, pieces[..., None])[..., 0]
    sums = (each * counted).sum(1)
    assert writing_loss(logits, pieces, counted) == pytest.approx(float(sums.sum() / 3), rel=1e-4)
    kept = int(sums.argmin())
    expected = float(sums[kept] / counted[kept].sum())
    assert writing_loss(logits, pieces, counted, 0.5) == pytest.approx(expected, rel=1e-4)


def test_texts_of_word_pieces():
    tokenizer = Tokenizer.load("synthetic")
    pieces = tokenizer.encode([["There is no pneumothorax.", "Heart size is normal."]])
    ids = torch.tensor([[tokenizer.cls, *pieces.ids.tolist(), tokenizer.sep, tokenizer.pad]])
    assert tokenizer.decode(ids.numpy()) == ["there is no pneumothorax. heart size is normal."]
