"""Word pieces: ids as BERT's own tokenizer gives them, words and sentences counted right."""

import pickle

import numpy as np
import pytest
from helpers import write_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp_bench.data import tokenization
from vlp_bench.data.store import TextForm
from vlp_bench.data.tokenization import SPECIAL, SentencePieces, Tokenizer
from vlp_bench.errors import UserError

VOCAB = [*SPECIAL, "no", "pneumo", "##thorax", "##thor", "##ax", "heart", "is", "large", "x", "-", "ray", ".", ",", "'"]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer(VOCAB, lowercase=True)


def spelled(tokenizer: Tokenizer, texts: list[list[str]]) -> list[list[tuple[str, int, int]]]:
    """Piece, word and sentence of every text."""
    pieces = tokenizer.encode(texts)
    names = [tokenizer.vocab[i] for i in pieces.ids]
    flat = list(zip(names, pieces.word.tolist(), pieces.sentence.tolist(), strict=True))
    return [flat[a:b] for a, b in zip(pieces.offsets[:-1], pieces.offsets[1:], strict=True)]


def test_words_and_sentences_by_hand(small):
    texts = [["No pneumothorax", "Heart is large"], ["x-ray, heart."], [], ["", "no zebra no"]]
    assert spelled(small, texts) == [
        [("no", 0, 0), ("pneumo", 1, 0), ("##thorax", 1, 0), ("heart", 2, 1), ("is", 3, 1), ("large", 4, 1)],
        [("x", 0, 0), ("-", 1, 0), ("ray", 2, 0), (",", 3, 0), ("heart", 4, 0), (".", 5, 0)],
        [],
        [("no", 0, 1), ("[UNK]", 1, 1), ("no", 2, 1)],
    ]
    assert small.encode(texts).sentence_counts.tolist() == [2, 1, 0, 2]


def test_neighbouring_unknown_words_stay_two(small):
    assert spelled(small, [["zebra zebra", "zebra"]]) == [[("[UNK]", 0, 0), ("[UNK]", 1, 0), ("[UNK]", 2, 1)]]


def test_nothing_to_tokenise(small):
    for texts in ([], [[]], [[], [""]]):
        pieces = small.encode(texts)
        assert len(pieces) == len(texts)
        assert pieces.offsets.tolist() == [0] * (len(texts) + 1)
        assert pieces.sentence_counts.tolist() == [0] * len(texts)
        assert pieces.ids.dtype == pieces.word.dtype == pieces.sentence.dtype == np.int32


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(["no heart", "pneumothorax", "", "x-ray."]), max_size=4), max_size=7))
def test_many_texts_are_cut_into_parts_unnoticed(texts):
    small = Tokenizer(VOCAB, lowercase=True)
    whole, before = small.encode(texts), tokenization.TEXTS_AT_ONCE
    try:
        tokenization.TEXTS_AT_ONCE = 2
        parts = small.encode(texts)
    finally:
        tokenization.TEXTS_AT_ONCE = before
    for name in ("ids", "word", "sentence", "offsets"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def sentences_of(store) -> list[str]:
    form = TextForm(clean="none")
    odd = ["Größe: 3.5cm", "it's a X-RAY!", "left/right", "naïve résumé", "a" * 120, "don't — stop"]
    return [s for r in store.studies.to_dict("records") for s in form.sentences(r)] + odd


def berts(path, lowercase):
    """BERT's slow tokenizer in Python: another program than the one under test."""
    try:
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy as Slow
    except ImportError:  # transformers 4
        from transformers import BertTokenizer as Slow
    return Slow(str(path), do_lower_case=lowercase)


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_agree_with_transformers(mimic_store, tmp_path, tokenizer, lowercase):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(tokenizer.vocab) + "\n", "utf-8")
    mine, theirs = Tokenizer.load(str(path), lowercase=lowercase), berts(path, lowercase)
    for sentence in sentences_of(mimic_store):
        assert mine.encode([[sentence]]).ids.tolist() == theirs(sentence, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("cased", [True, False])
def test_ids_agree_with_transformers_on_berts_own_vocabulary(mimic_store, real_dir, cased):
    path = real_dir / "vocab" / f"bert-base-{'cased' if cased else 'uncased'}-vocab.txt"
    mine, theirs = Tokenizer.load(str(path), lowercase=not cased), berts(path, not cased)
    assert len(mine) == len(theirs) == (28996 if cased else 30522)
    assert (mine.pad, mine.unk, mine.cls, mine.sep, mine.mask) == (0, 100, 101, 102, 103)
    for sentence in sentences_of(mimic_store):
        assert mine.encode([[sentence]]).ids.tolist() == theirs(sentence, add_special_tokens=False)["input_ids"]


def test_vocabularies_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\]"):
        Tokenizer(["[PAD]", "[UNK]", "[MASK]"], True)
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(str(tmp_path / "vocab.txt"))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"cannot be read as a BERT vocab\.txt"):
        Tokenizer.load(str(tmp_path / "vocab.txt"))


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\r\n".join([*SPECIAL, "a\u2028b", "\x85", "c"]) + "\r\n", "utf-8", newline="")
    assert Tokenizer.load(str(path)).vocab == [*SPECIAL, "a\u2028b", "\x85", "c"]


def test_fingerprint_and_pickle(tokenizer):
    other = Tokenizer(tokenizer.vocab, not tokenizer.lowercase)
    assert other.fingerprint != tokenizer.fingerprint == Tokenizer.load("synthetic").fingerprint
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode([["no edema"]]).ids, tokenizer.encode([["no edema"]]).ids)


# SentencePiece --------------------------------------------------------------------------------------------------------


def test_sentencepieces_are_lower_case_without_accents_and_know_words_and_sentences(tmp_path):
    sentences = ["no pleural effusion", "the heart is large", "no pneumothorax is seen", "left lung is clear"]
    pieces = SentencePieces(str(write_sentencepiece(tmp_path / "m.model", sentences, 60)))
    assert (pieces.pad, pieces.unk, pieces.cls, pieces.sep, pieces.mask) == (0, 0, 1, 2, 3)
    texts = [["No pl\u00e9ural EFFUSION", "heart"], [], ["the heart is large"]]
    first, none, third = spelled(pieces, texts)
    assert "".join(p for p, *_ in first).split("\u2581") == ["", "no", "pleural", "effusion", "heart"]
    assert [w for p, w, _ in first if p.startswith("\u2581")] == [0, 1, 2, 3]
    assert [s for p, _, s in first if p.startswith("\u2581")] == [0, 0, 0, 1]
    assert none == []
    assert max(w for _, w, _ in third) == 3
    assert pieces.fingerprint == SentencePieces(str(tmp_path / "m.model")).fingerprint
    ids = pieces.encode([["the heart is large"]]).ids.tolist()
    assert pieces.decode(np.array([[1, *ids, 2, ids[0]]])) == ["the heart is large"]
    assert (
        pieces.fingerprint != SentencePieces(str(write_sentencepiece(tmp_path / "n.model", sentences, 50))).fingerprint
    )


def test_what_is_no_sentencepiece_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        SentencePieces(str(tmp_path / "none.model"))
    (tmp_path / "bad.model").write_text("no model")
    with pytest.raises(UserError, match="no SentencePiece model"):
        SentencePieces(str(tmp_path / "bad.model"))
