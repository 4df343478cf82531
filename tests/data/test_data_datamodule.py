"""Batches: what is in them, and what their draws depend on."""

import dataclasses
import pickle
import shutil
import warnings
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import write_sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from vlp_bench.data import datamodule as room
from vlp_bench.data.datamodule import BatchKey, EpochBatches, Inputs, MimicCxrDataModule, assemble, assemble_glued
from vlp_bench.data.reports import swap_laterality
from vlp_bench.data.store import PreparedData
from vlp_bench.data.tokenization import SPECIAL, Pieces, Tokenizer
from vlp_bench.errors import UserError

DRAWN = Inputs(flip=0.5, shuffle_sentences=True)
NAMES = SimpleNamespace(pad=0, cls=1, sep=2)


def module_of(store, tokenizer, inputs=DRAWN, **options) -> MimicCxrDataModule:
    return MimicCxrDataModule(store, tokenizer, inputs, **{"image_size": 56, "batch_size": 8} | options)


def same(a, b) -> bool:
    fields = [(a.image, b.image), (a.view_mask, b.view_mask), (a.flipped, b.flipped), (a.study, b.study)]
    fields += [(getattr(a.text, n), getattr(b.text, n)) for n in ("ids", "mask", "word", "sentence")]
    labels = torch.equal(a.labels.nan_to_num(9), b.labels.nan_to_num(9))
    return a.study_id == b.study_id and labels and all(torch.equal(x, y) for x, y in fields)


# Texts ----------------------------------------------------------------------------------------------------------------


def pieces_of(texts: list[list[int]]) -> Pieces:
    """Texts given as the lengths of their sentences; every piece is a word with an id of its own, from 10."""
    sentence = [np.repeat(np.arange(len(t)), t) for t in texts]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sentence])]).astype(np.int64)
    flat = np.concatenate([*sentence, np.zeros(0)]).astype(np.int32)
    word = np.concatenate([*(np.arange(len(s)) for s in sentence), np.zeros(0)]).astype(np.int32)
    return Pieces(np.arange(10, 10 + len(flat), dtype=np.int32), word, flat, offsets)


def test_assemble_by_hand():
    tokens = assemble(pieces_of([[2, 1], [], [1]]), np.array([0, 1, 2, 0]), NAMES, 10)
    assert tokens.ids.tolist() == [[1, 10, 11, 12, 2], [1, 2, 0, 0, 0], [1, 13, 2, 0, 0], [1, 10, 11, 12, 2]]
    assert tokens.mask.sum(1).tolist() == [5, 2, 3, 5]
    assert tokens.word.tolist()[0] == [-1, 0, 1, 2, -1]
    assert tokens.sentence.tolist()[0] == [-1, 0, 0, 1, -1]
    assert tokens.word.tolist()[1] == [-1] * 5


def test_assemble_cuts_and_keeps_the_last_separator():
    tokens = assemble(pieces_of([[3, 3], [1]]), np.array([0, 1]), NAMES, 5)
    assert tokens.ids.tolist() == [[1, 10, 11, 12, 2], [1, 16, 2, 0, 0]]


def test_assemble_without_any_text():
    for texts in ([[]], [[], []]):
        tokens = assemble(pieces_of(texts), np.zeros(3, int), NAMES, 8, np.random.default_rng(0))
        assert tokens.ids.tolist() == [[1, 2]] * 3
    assert assemble(pieces_of([[1]]), np.zeros(0, int), NAMES, 8).ids.shape == (0, 2)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=5),
    st.integers(0, 2**31),
    st.integers(3, 30),
)
def test_a_new_order_moves_whole_sentences(texts, seed, length):
    pieces, rows = pieces_of(texts), np.arange(len(texts))
    plain = assemble(pieces, rows, NAMES, 1000)
    mixed = assemble(pieces, rows, NAMES, 1000, np.random.default_rng(seed))
    assert torch.equal(plain.mask, mixed.mask)
    for b in range(len(texts)):
        ids, sentence = mixed.ids[b][mixed.word[b] >= 0].tolist(), mixed.sentence[b][mixed.word[b] >= 0].tolist()
        assert sorted(ids) == plain.ids[b][plain.word[b] >= 0].tolist()
        assert all(i < j for i, j, s, t in zip(ids, ids[1:], sentence, sentence[1:], strict=False) if s == t)
        runs = [s for k, s in enumerate(sentence) if k == 0 or s != sentence[k - 1]]
        assert len(runs) == len(set(runs)), "no sentence is torn apart"
    cut = assemble(pieces, rows, NAMES, length, np.random.default_rng(seed))
    width = cut.ids.shape[1]
    assert width <= length
    for b in range(len(texts)):
        kept = int(cut.mask[b].sum()) - 2
        assert cut.ids[b, 1 : 1 + kept].tolist() == mixed.ids[b, 1 : 1 + kept].tolist()
    assert cut.most_sentences == max(len(set(row[row >= 0].tolist())) for row in cut.sentence)


def test_orders_vary(tokenizer, mimic_store):
    plain, _ = mimic_store.pieces(tokenizer, DRAWN.form)
    row = np.array([int(np.argmax(np.diff(plain.offsets)))])
    orders = {tuple(assemble(plain, row, tokenizer, 999, np.random.default_rng(s)).ids[0].tolist()) for s in range(9)}
    assert len(orders) > 5


def test_both_sides_come_in_the_same_order(tokenizer, mimic_store):
    versions = mimic_store.pieces(tokenizer, DRAWN.form)
    rows = np.arange(len(mimic_store.studies))
    plain, mirrored = (assemble(v, rows, tokenizer, 999, np.random.default_rng(5)) for v in versions)
    for a, b in zip(plain.sentence, mirrored.sentence, strict=True):
        order = [list(dict.fromkeys(s[s >= 0].tolist())) for s in (a, b)]
        assert order[0] == order[1]


def test_mirrored_texts_are_those_with_the_sides_swapped(tokenizer, mimic_store):
    form = DRAWN.form
    _, mirrored = mimic_store.pieces(tokenizer, form)
    texts = [form.sentences(r) for r in mimic_store.studies.to_dict("records")]
    swapped = tokenizer.encode([[swap_laterality(s) for s in t] for t in texts])
    np.testing.assert_array_equal(mirrored.ids, swapped.ids)
    np.testing.assert_array_equal(mirrored.offsets, swapped.offsets)


@pytest.mark.parametrize(
    "option",
    [
        {"sections": "findings_impression"},
        {"fallback": "last_paragraph"},
        {"clean": "none"},
        {"marks": "drop"},
        {"swap": "substrings"},
    ],
)
def test_what_changes_the_words_has_word_pieces_of_its_own(mimic_store, tokenizer, tmp_path, option):
    path = shutil.copytree(mimic_store.path, tmp_path / "copy", ignore=shutil.ignore_patterns("tokens"))
    store = PreparedData(path)
    for form in (Inputs().form, Inputs(**option).form, Inputs(**option, min_tokens=9).form):
        store.pieces(tokenizer, form)
    assert len([p for p in (path / "tokens").iterdir() if p.is_dir()]) == 2


@pytest.mark.parametrize("option", ["sample", "special_cases", "join", "caption_end", "sections", "swap"])
def test_unknown_choices_are_refused(option):
    with pytest.raises(UserError, match=rf"method\.inputs\.{option}=sideways: expected one of"):
        Inputs(**{option: "sideways"})


def test_letters_are_swapped_in_training(mimic_store, tokenizer):
    inputs = Inputs(sections="findings", clean="none", flip=1.0, swap="substrings")
    data = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=True)
    batch, changed = data[BatchKey(0, 0, np.arange(len(data)))], 0
    for k, study in enumerate(batch.study.tolist()):
        text = inputs.form.sentences(mimic_store.studies.iloc[study])
        swapped = [swap_laterality(s, "substrings") for s in text]
        ids = tokenizer.encode([swapped]).ids[: inputs.max_tokens - 2].tolist()
        assert batch.text.ids[k][batch.text.word[k] >= 0].tolist() == ids
        changed += swapped != [swap_laterality(s) for s in text]
    assert changed, "a side that begins a sentence stays"


def test_a_text_that_is_cut_with_its_end():
    pieces = pieces_of([[3, 3], [1], [2, 1]])
    kept, cut = (assemble(pieces, np.arange(3), NAMES, 5, end=end) for end in ("kept", "cut"))
    assert cut.ids.tolist() == [[1, 10, 11, 12, 13], [1, 16, 2, 0, 0], [1, 17, 18, 19, 2]]
    assert cut.mask.sum(1).tolist() == [5, 3, 5]
    assert cut.sentence.tolist() == [[-1, 0, 0, 0, 1], [-1, 0, -1, -1, -1], [-1, 0, 0, 1, -1]]
    assert (kept.most_sentences, cut.most_sentences) == (2, 2)
    # nothing is padded for it
    assert assemble(pieces, np.array([1]), NAMES, 5, end="cut").ids.shape == (1, 3)


# Sentences glued together, as PRIOR's code has them -------------------------------------------------------------------


def test_glued_by_hand():
    small = Tokenizer([*SPECIAL, "no", "edema", "##no", ".", "clear"], lowercase=True)
    tokens = assemble_glued([["No edema", "No edema", "Clear."], ["Clear."], []], small, 9)
    assert [[small.vocab[i] for i in row] for row in tokens.ids[:2].tolist()] == [
        ["[CLS]", "no", "edema", "##no", "[UNK]", ".", "[SEP]", "[PAD]"],
        ["[CLS]", "clear", ".", "[SEP]", "[PAD]", "[PAD]", "[PAD]", "[PAD]"],
    ]
    assert tokens.mask.sum(1).tolist() == [7, 4, 2]
    # sentences alone have 2, 2 and 2 pieces: the last one ends at [SEP]
    assert tokens.sentence.tolist() == [
        [-1, 0, 0, 1, 1, 2, 2, -1],
        [-1, 0, 0, -1, -1, -1, -1, -1],
        [-1] * 8,
    ]
    assert tokens.most_sentences == 3
    cut = assemble_glued([["No edema", "No edema", "Clear."]], small, 5)
    assert cut.ids.tolist() == tokens.ids[:1, :5].tolist()
    assert cut.most_sentences == 2
    assert assemble_glued([[]], small, 9).ids.tolist() == [[small.cls, small.sep]]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["No edema.", "The heart is large!", "Clear."]), max_size=4), max_size=4))
def test_sentences_that_end_are_glued_without_harm(texts):
    synthetic = Tokenizer.load("synthetic")
    glued, spaced = (
        assemble_glued(texts, synthetic, 40),
        assemble(synthetic.encode(texts), np.arange(len(texts)), synthetic, 40),
    )
    for name in ("ids", "mask", "sentence"):
        assert torch.equal(getattr(glued, name), getattr(spaced, name))


def test_glued_reports_in_training(mimic_store, tokenizer):
    inputs = Inputs(clean="none", join="glued", flip=0.5, shuffle_sentences=True, max_tokens=60, swap="substrings")
    data = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=True)
    key = BatchKey(0, 0, np.arange(len(data)))
    batch, orders = data[key], 0
    assert same(batch, data[key])
    assert batch.text.ids.shape[1] <= 60
    for k, study in enumerate(batch.study.tolist()):
        text = inputs.form.sentences(mimic_store.studies.iloc[study])
        text = inputs.mirrored(text) if batch.flipped[k, 0] else text
        whole = sorted(tokenizer.encode([["".join(text)]]).ids.tolist())
        found = batch.text.ids[k][batch.text.mask[k]].tolist()[1:]
        if len(whole) < 50:
            assert sorted(found[:-1]) == whole
            orders += found[:-1] != tokenizer.encode([["".join(text)]]).ids.tolist()
    assert orders > 3
    straight = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=False)[key]
    texts = [inputs.form.sentences(mimic_store.studies.iloc[s]) for s in straight.study.tolist()]
    assert torch.equal(straight.text.ids, assemble_glued(texts, tokenizer, 60).ids)


def test_reports_that_are_read_by_hand_can_be_left_out(mimic_store, tokenizer, monkeypatch):
    def kept(**options) -> set[int]:
        data = module_of(mimic_store, tokenizer, Inputs(**options)).dataset("train", augment=False)
        return set(data.study_of_image[data.views[:, 0]].tolist())

    chosen = min(kept())
    marked = mimic_store.studies.assign(special=np.arange(len(mimic_store.studies)) == chosen)
    monkeypatch.setattr(mimic_store, "studies", marked)
    assert kept() - kept(special_cases="drop") == {chosen}


def test_tokenised_once(tokenizer, mimic_store, tmp_path, monkeypatch):
    path = shutil.copytree(mimic_store.path, tmp_path / "copy", ignore=shutil.ignore_patterns("tokens"))
    calls, encode = [], type(tokenizer).encode
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, texts: (calls.append(1), encode(self, texts))[1])
    for _ in range(2):
        PreparedData(path).pieces(tokenizer, DRAWN.form)
    assert len(calls) == 2  # as written, and mirrored
    PreparedData(path).pieces(tokenizer, Inputs(sections="findings").form)
    assert len(calls) == 4
    assert len([p for p in (path / "tokens").iterdir() if p.is_dir()]) == 2


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_holds_what_the_store_holds(mimic_store, tokenizer):
    data = module_of(mimic_store, tokenizer, Inputs()).dataset("train", augment=False)
    batch = data[BatchKey(0, 0, np.arange(len(data)))]
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (len(data), 1, 1, 56, 56)
    assert not batch.flipped.any()
    assert batch.view_mask.all()
    rows = data.views[:, 0]
    np.testing.assert_array_equal(batch.frontal[:, 0], mimic_store.pixels(rows)[:, 4:60, 4:60])
    images = mimic_store.images.iloc[rows]
    assert set(images["split"]) == {"train"}
    assert images["frontal"].all()
    assert list(batch.study_id) == mimic_store.studies["study_id"].iloc[images["study"]].tolist()
    np.testing.assert_array_equal(batch.labels, mimic_store.study_labels[images["study"]])
    words = [len(" ".join(DRAWN.form.sentences(mimic_store.studies.iloc[s])).split()) for s in images["study"]]
    assert min(words) >= 3


def test_flipped_rows_have_the_mirrored_image_and_report(mimic_store, tokenizer):
    inputs = Inputs(flip=0.5)
    data = module_of(mimic_store, tokenizer, inputs, image_size=64).dataset("train", augment=True)
    key = BatchKey(0, 0, np.arange(len(data)))
    batch, flipped = data[key], data[key].flipped[:, 0].numpy()
    assert 0.2 < flipped.mean() < 0.8
    pixels = mimic_store.pixels(data.views[:, 0])
    np.testing.assert_array_equal(batch.frontal[:, 0].numpy()[flipped], pixels[flipped][:, :, ::-1])
    np.testing.assert_array_equal(batch.frontal[:, 0].numpy()[~flipped], pixels[~flipped])
    form, changed = inputs.form, 0
    for k, study in enumerate(batch.study.tolist()):
        text = form.sentences(mimic_store.studies.iloc[study])
        wanted = [swap_laterality(s) for s in text] if flipped[k] else text
        ids = tokenizer.encode([wanted]).ids[: inputs.max_tokens - 2].tolist()
        assert batch.text.ids[k][batch.text.word[k] >= 0].tolist() == ids
        changed += wanted != text
    assert changed > 3


def test_padding_is_the_tokenizers(mimic_store, tokenizer):
    moved = type(tokenizer)([*tokenizer.vocab[1:], tokenizer.vocab[0]], True)
    assert moved.pad != 0
    batch = next(iter(module_of(mimic_store, moved).train_dataloader()))
    assert batch.flipped.any()
    assert (batch.text.ids[~batch.text.mask] == moved.pad).all()


def test_a_sample_a_study(mimic_store, tokenizer):
    inputs = Inputs(sample="study", views=2, frontal_only=False, flip=1.0)
    data = module_of(mimic_store, tokenizer, inputs, image_size=64).dataset("train", augment=True)
    batch = data[BatchKey(0, 0, np.arange(len(data)))]
    assert len(set(batch.study.tolist())) == len(batch)
    counts = Counter(mimic_store.images["study"])
    assert batch.view_mask.sum(1).tolist() == [min(counts[s], 2) for s in batch.study.tolist()]
    assert set(batch.view_mask.sum(1).tolist()) == {1, 2}
    assert batch.view_mask[:, 0].all()
    assert not batch.image[~batch.view_mask].any()
    assert torch.equal(batch.flipped, batch.view_mask)
    pixels = mimic_store.pixels(data.views[batch.view_mask.numpy()])
    np.testing.assert_array_equal(batch.image[batch.view_mask][:, 0], pixels[:, :, ::-1])
    for row in data.views:
        frontal = mimic_store.images["frontal"].to_numpy()[row[row >= 0]]
        assert frontal.tolist() == sorted(frontal, reverse=True), "frontal views come first"
        assert mimic_store.images["study"].to_numpy()[row[row >= 0]].std() == 0


def test_one_view_alone(mimic_store, tokenizer):
    frontal, ap = (
        module_of(mimic_store, tokenizer, Inputs(only_view=view)).dataset("train", augment=False).views[:, 0]
        for view in (None, "AP")
    )
    view = mimic_store.images["view"].to_numpy()
    assert set(view[frontal]) == {"AP", "PA"}
    assert ap.tolist() == [row for row in frontal if view[row] == "AP"]
    # a study then has its first image of that view
    inputs = Inputs(sample="study", frontal_only=False, only_view="LATERAL")
    lateral = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=False).views[:, 0]
    assert set(view[lateral]) == {"LATERAL"}


def test_reports_of_few_sentences_can_be_left_out(mimic_store, tokenizer):
    def kept(least: int) -> list[int]:
        inputs = Inputs(sample="study", clean="none", min_sentences=least)
        data = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=False)
        return sorted(data.study_of_image[data.views[:, 0]].tolist())

    form = Inputs(clean="none").form
    count = [len(form.sentences(r)) for r in mimic_store.studies.to_dict("records")]
    assert kept(5) == [study for study in kept(0) if count[study] >= 5]
    assert 0 < len(kept(5)) < len(kept(0))


def test_labels_of_the_image_where_images_are_labelled(folder_store, tokenizer):
    data = module_of(folder_store, tokenizer, Inputs()).dataset("train", augment=False)
    batch = data[BatchKey(0, 0, np.arange(4))]
    np.testing.assert_array_equal(batch.labels, folder_store.image_labels[data.views[:4, 0]])
    assert not batch.labels.isnan().any()


@pytest.mark.parametrize("sample, join", [("image", "spaced"), ("study", "spaced"), ("study", "glued")])
def test_workers_change_nothing(mimic_store, tokenizer, sample, join):
    inputs = Inputs(sample=sample, views=2, frontal_only=False, flip=0.5, shuffle_sentences=True, join=join)
    alone, helped = (list(module_of(mimic_store, tokenizer, inputs, num_workers=n).train_dataloader()) for n in (0, 2))
    assert len(alone) == len(helped) > 2
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_draws_depend_on_seed_epoch_step_and_rank(mimic_store, tokenizer):
    def batch(seed=0, epoch=0, step=0, rank=0):
        data = module_of(mimic_store, tokenizer, seed=seed).dataset("train", augment=True)
        return data[BatchKey(epoch, step, np.arange(16), rank)]

    assert same(batch(), batch())
    for other in ({"seed": 1}, {"epoch": 1}, {"step": 1}, {"rank": 1}):
        assert not torch.equal(batch().image, batch(**other).image)
        assert not torch.equal(batch().flipped, batch(**other).flipped)


def test_a_batch_from_another_process_is_the_same(mimic_store, tokenizer):
    data = module_of(mimic_store, tokenizer).dataset("train", augment=True)
    batch = data[BatchKey(1, 2, np.arange(8))]
    copy = pickle.loads(pickle.dumps(batch))
    assert same(copy, batch)
    assert copy.caption is None
    assert (copy.text.ids.dtype, copy.view_mask.dtype) == (torch.int64, torch.bool)
    copy.image.zero_()
    copy.text.ids.zero_()
    assert batch.text.ids.any()


def test_another_process_gets_the_paths_not_the_pixels(mimic_store, tokenizer):
    data = module_of(mimic_store, tokenizer).dataset("train", augment=True)
    key = BatchKey(1, 2, np.arange(8))
    before = data[key]
    state = pickle.dumps(data)
    assert len(state) < mimic_store.images.memory_usage(deep=True).sum() + 500_000
    assert same(pickle.loads(state)[key], before)
    assert len(pickle.dumps(mimic_store)) < 5000


# Order ----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    drop=st.booleans(),
    window=st.integers(1, 4),
)
def test_ranks_share_an_epoch_without_overlap(size, batch, world, seed, epoch, shuffle, drop, window):
    common = {"seed": seed, "shuffle": shuffle, "drop_last": drop}
    if window > 1:
        common |= {"lengths": np.random.default_rng(seed).integers(3, 9, size), "window": window}
    samplers = [EpochBatches(size, batch, rank=r, world=world, **common) for r in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    ranks = [list(s) for s in samplers]
    assert {len(r) for r in ranks} == {len(samplers[0])}
    every = np.concatenate([k.indices for r in ranks for k in r] or [np.zeros(0, int)])
    assert len(set(every.tolist())) == len(every) == (size // (batch * world) * batch * world if drop else size)
    assert set(every.tolist()) <= set(range(size))
    for step, keys in enumerate(zip(*ranks, strict=True)):
        lengths = [len(k.indices) for k in keys]
        assert max(lengths) - min(lengths) <= (0 if drop else 1)
        assert [(k.epoch, k.step, k.rank) for k in keys] == [(epoch, step, r) for r in range(world)]
    joined = EpochBatches(size, batch * world, rank=0, world=1, **common)
    joined.set_epoch(epoch)
    for step, key in enumerate(joined):
        assert sorted(np.concatenate([r[step].indices for r in ranks])) == sorted(key.indices)


def test_orders_differ_between_epochs_and_seeds():
    def order(seed, epoch):
        sampler = EpochBatches(50, 5, rank=0, world=1, seed=seed, shuffle=True, drop_last=True)
        sampler.set_epoch(epoch)
        return np.concatenate([k.indices for k in sampler]).tolist()

    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9
    assert order(2, 1) == order(2, 1)


def test_batches_of_a_window_hold_texts_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 60, 403)

    def padding(window, epoch=0):
        common = {"rank": 0, "world": 1, "seed": 0, "shuffle": True, "drop_last": True}
        sampler = EpochBatches(403, 10, lengths=lengths, window=window, **common)
        sampler.set_epoch(epoch)
        batches = [lengths[k.indices] for k in sampler]
        return sum(b.max() * len(b) - b.sum() for b in batches) / sum(b.sum() for b in batches), batches

    shares = [padding(window)[0] for window in (1, 4, 8, 40)]
    assert shares == sorted(shares, reverse=True)
    assert shares[2] < shares[0] / 4
    # Short reports do not come first, and with other neighbours in the next epoch.
    first, second = (padding(40, epoch)[1] for epoch in (0, 1))
    assert [b.max() for b in first] != sorted(b.max() for b in first)
    assert {tuple(b) for b in map(sorted, first)} != {tuple(b) for b in map(sorted, second)}


@given(start=st.integers(0, 7), epoch=st.integers(0, 2))
def test_a_start_skips_what_was_done_in_its_epoch(start, epoch):
    def sampler(at):
        made = EpochBatches(33, 5, rank=0, world=1, seed=0, shuffle=True, drop_last=False)
        made.set_epoch(at)
        return made

    resumed = sampler(epoch)
    resumed.start = start
    # the loader may ask for an epoch twice, and be told of it again
    for at, first in ((epoch, start), (epoch, start), (epoch + 1, 0)):
        resumed.set_epoch(at)
        wanted, found = list(sampler(at))[first:], list(resumed)
        assert [k.step for k in found] == [k.step for k in wanted]
        assert all((a.indices == b.indices).all() for a, b in zip(found, wanted, strict=True))


def test_captions_are_the_same_reports_in_other_pieces(tokenizer, mimic_store, tmp_path):
    form = DRAWN.form
    sentences = [s for r in mimic_store.studies.to_dict("records") for s in form.sentences(r)]
    path = str(write_sentencepiece(tmp_path / "m.model", [*sentences, "left", "right"], 400))
    inputs = dataclasses.replace(DRAWN, max_tokens=999, sentencepiece=path)
    data = pickle.loads(pickle.dumps(module_of(mimic_store, tokenizer, inputs).dataset("train", True)))
    key = BatchKey(0, 0, np.arange(8))
    batch = data[key]
    assert batch.flipped.any()
    assert same(
        batch, module_of(mimic_store, tokenizer, dataclasses.replace(DRAWN, max_tokens=999)).dataset("train", True)[key]
    )

    def letters(tokens, vocab, mark):
        rows = ["".join(vocab[i] for i in ids[word >= 0]) for ids, word in zip(tokens.ids, tokens.word, strict=True)]
        return ["".join(c for c in row.replace(mark, "") if c.isalnum()) for row in rows]

    captions = letters(batch.caption, data.caption_tokenizer.vocab, "\u2581")
    assert captions == letters(batch.text, tokenizer.vocab, "##")


@pytest.mark.parametrize("end", ["kept", "cut"])
def test_long_captions_keep_their_end_or_lose_it(tokenizer, mimic_store, tmp_path, end):
    sentences = [s for text in mimic_store.sentences(DRAWN.form) for s in text]
    path = str(write_sentencepiece(tmp_path / "m.model", [*sentences, "left", "right"], 400))
    inputs = Inputs(max_tokens=12, sentencepiece=path, caption_end=end, flip=0.5)
    data = module_of(mimic_store, tokenizer, inputs).dataset("train", augment=True)
    batch = data[BatchKey(0, 0, np.arange(16))]
    full = data.captions[0].offsets[batch.study + 1] - data.captions[0].offsets[batch.study] + 2
    assert batch.caption.ids.shape == batch.text.ids.shape == (16, 12)
    ends = (batch.caption.ids == data.caption_tokenizer.sep).any(1)
    assert (full > 13).any()
    assert ends[full > 13].all() == (end == "kept")
    assert end == "kept" or not ends[full > 13].any()
    # the text of the text encoder ends with [SEP] in any case
    assert (batch.text.ids == tokenizer.sep).any(1).all()


class Watcher(LightningModule):
    """Learns nothing and writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list = []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch.study_id, int(batch.image.sum()), int(batch.text.ids.sum())))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [2, 5, 6, 10])
def test_a_resumed_run_sees_the_same_batches(mimic_store, tokenizer, tmp_path, at, workers):
    def fit(epochs, steps, resume=None):
        module, data = Watcher(), module_of(mimic_store, tokenizer, num_workers=workers)
        data.val_dataloader = None  # nothing to validate here
        keep = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=at, enable_version_counter=False)
        with warnings.catch_warnings():
            # Lightning advertises, and says that a run was stopped inside an epoch: it was
            warnings.simplefilter("ignore")
            trainer = Trainer(
                max_epochs=epochs,
                max_steps=steps,
                logger=False,
                callbacks=[keep],
                accelerator="cpu",
                use_distributed_sampler=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, datamodule=data, ckpt_path=resume)
        return module.seen

    whole = fit(3, -1)
    assert len(whole) > 8
    (tmp_path / "last.ckpt").unlink()
    assert fit(3, at) == whole[:at]
    assert fit(3, -1, tmp_path / "last.ckpt") == whole[at:]


# Refusals -------------------------------------------------------------------------------------------------------------


def test_images_larger_than_those_stored(mimic_store, tokenizer):
    with pytest.raises(UserError, match=r"vision\.image_size=65 is larger .*\(64 px\)\. Prepare with data\.store_size"):
        module_of(mimic_store, tokenizer, image_size=65).train_dataloader()


def test_no_sample_for_this_method(mimic_store, tokenizer):
    with pytest.raises(UserError, match=r"has no train sample for this method .*min_tokens=9999"):
        module_of(mimic_store, tokenizer, Inputs(min_tokens=9999)).train_dataloader()
    with pytest.raises(UserError, match=r"has no train sample for this method .*min_sentences=99"):
        module_of(mimic_store, tokenizer, Inputs(min_sentences=99)).train_dataloader()
    with pytest.raises(UserError, match=r"method\.inputs\.only_view=ap: .* of the views AP, LATERAL, LL, PA"):
        module_of(mimic_store, tokenizer, Inputs(only_view="ap")).train_dataloader()
    with pytest.raises(UserError, match="has no holdout sample"):
        module_of(mimic_store, tokenizer).dataset("holdout", augment=False)


def test_a_rank_without_a_sample_in_the_last_step(mimic_store, tokenizer):
    batch = module_of(mimic_store, tokenizer).dataset("val", augment=False)[BatchKey(0, 0, np.zeros(0, np.int64))]
    assert len(batch) == 0
    assert batch.image.shape == (0, 1, 1, 56, 56)
    assert batch.text.ids.shape == (0, 2)


def test_a_batch_larger_than_the_data(mimic_store, tokenizer):
    with pytest.raises(UserError, match=r"fewer than one batch of 999 x 1\. Lower data\.batch_size"):
        module_of(mimic_store, tokenizer, batch_size=999).train_dataloader()
    with pytest.raises(UserError, match="has 4 train samples"):
        module_of(mimic_store, tokenizer, limit=4).train_dataloader()


def test_validation_takes_a_small_split_as_one_batch(mimic_store, tokenizer):
    module = module_of(mimic_store, tokenizer, batch_size=30)
    (batch,) = module.val_dataloader()
    assert len(batch) == len(module.dataset("val", augment=False)) < 30
    assert not batch.flipped.any()


def test_ranks_are_dealt_different_samples(mimic_store, tokenizer, monkeypatch):
    seen = []
    for rank in range(2):
        monkeypatch.setattr(room, "rank_and_world", lambda rank=rank: (rank, 2))
        batches = list(module_of(mimic_store, tokenizer, batch_size=4).train_dataloader())
        seen.append([b.image.sum((1, 2, 3, 4)).tolist() for b in batches])
    assert len(seen[0]) == len(seen[1])
    assert not set(chain(*seen[0])) & set(chain(*seen[1]))
