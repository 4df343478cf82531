"""Reports by a bundle's own decoder, by a joint encoder, and by a new decoder on any backbone."""

import numpy as np
import pandas as pd
import pytest
import torch
from dealing import dealt_anew

from vlp_bench.data.datamodule import BatchKey
from vlp_bench.data.store import TextForm
from vlp_bench.data.tokenization import Tokenizer
from vlp_bench.encoders.bundle import Encoders
from vlp_bench.errors import UserError
from vlp_bench.metrics.labeler import RuleLabeler
from vlp_bench.metrics.labels import label_metrics
from vlp_bench.metrics.language import language_metrics, words
from vlp_bench.tasks.authors import DecoderAuthor, JointAuthor, author
from vlp_bench.tasks.report_generation import DECODER, ReportGeneration
from vlp_bench.types import Tokens, WordsBatch

SHORT = [
    "task=report_generation",
    "adaptation=frozen",
    "adaptation.epochs=2",
    "adaptation.batch_size=32",
    "adaptation.min_steps=0",
]
SMALL = {"width": 32, "heads": 2, "feedforward": 64, "layers": 1, "dropout": 0.0}


@pytest.fixture(scope="module")
def bundles(pretrained):
    writes = ["method.decoder.width=32", "method.decoder.heads=2", "method.decoder.feedforward=64"]
    made = {"own decoder": pretrained("refers", "vit", *writes, "method.views=2", "method.inputs.max_tokens=60")}
    made["joint"] = pretrained("medvill")
    made["new decoder"] = pretrained("convirt")
    made["only eyes"] = Encoders({"vision": made["new decoder"].vision}, {"name": "only eyes"})
    return made


def task(**options):
    return ReportGeneration("label_f1", **{"decoder": SMALL, "max_tokens": 40} | options)


@pytest.mark.parametrize("which", ["own decoder", "joint", "new decoder", "only eyes"])
def test_every_backbone_can_write(which, bundles, cell_of):
    cell = cell_of(bundles[which], *SHORT)
    made = task()
    outcome = made.run(cell)
    assert outcome.metrics.keys() == outcome.trivial.keys()
    named = {"perplexity", "perplexity_per_report", "bleu1", "bleu4", "rouge_l", "label_f1", "label_accuracy"}
    assert named <= outcome.metrics.keys()
    assert outcome.metrics["perplexity"]["value"] > 1
    table, store = outcome.predictions, cell.target.store
    assert table["item_id"].is_unique
    # What the table holds gives the metrics again.
    true, said = ([words(t) for t in table[column]] for column in ("true", "generated"))
    again = language_metrics(true, said, table["patient_id"], resamples=50)
    assert again["bleu2"] == outcome.metrics["bleu2"]
    assert table["mean_rouge_l"].mean() == pytest.approx(outcome.metrics["rouge_l"]["value"])
    per_report = outcome.metrics["perplexity_per_report"]["value"]
    assert table["mean_perplexity_per_report"].mean() == pytest.approx(per_report)
    label = RuleLabeler()
    again = label_metrics(label(table["generated"]), label(table["true"]), table["patient_id"], resamples=50)
    assert again["label_f1"] == outcome.metrics["label_f1"]
    # One image a study, and its report.
    images = store.images.set_index("image_id").loc[table["item_id"]]
    assert images["study"].is_unique
    assert images["frontal"].all()
    study = store.studies.iloc[images["study"].iloc[3]].to_dict()
    assert table["true"].iloc[3] == " ".join(TextForm("longer", "none").sentences(study))
    pictures = list(made.pictures(cell, outcome, 2))
    assert [p.image.ndim for p in pictures] == [3, 3]
    assert outcome.facts["baselines"]["nearest training report"].keys() == outcome.metrics.keys() - {
        "perplexity",
        "perplexity_per_report",
    }


def test_trivial_report_and_words(bundles, cell_of):
    cell = cell_of(bundles["only eyes"], *SHORT, "adaptation.epochs=1")
    outcome = task().run(cell)
    store = cell.target.store
    form = TextForm("longer", "none", 1)
    of_split = {s: store.studies[store.studies["split"] == s] for s in ("train", "test")}
    texts = {s: [" ".join(form.sentences(r)) for r in t.to_dict("records")] for s, t in of_split.items()}
    common = pd.Series([t for t in texts["train"] if t]).value_counts().index[0]
    said = [t for t in texts["test"] if t]
    expected = language_metrics(
        [words(t) for t in said], [words(common)] * len(said), np.arange(len(said)), resamples=0
    )
    assert outcome.trivial["bleu1"]["value"] == pytest.approx(expected["bleu1"]["value"])
    # Unigrams, counted by hand.
    tokenizer = Tokenizer.load("synthetic")
    encoded = {s: tokenizer.encode([form.cut(t) for t in ts if t]) for s, ts in texts.items()}

    def ids(split):
        pieces = encoded[split]
        rows = np.split(pieces.ids, pieces.offsets[1:-1])
        return np.concatenate([[*row[:38], tokenizer.sep] for row in rows])

    times = np.bincount(ids("train"), minlength=len(tokenizer)) + 1
    expected = np.exp(-np.log(times / times.sum())[ids("test")].mean())
    assert outcome.trivial["perplexity"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("which", ["own decoder", "joint"])
def test_a_bundle_that_can_write_needs_no_training(which, bundles, cell_of):
    cell = cell_of(bundles[which], "task=report_generation", "adaptation=none")
    outcome = task(beams=2).run(cell)
    assert "epochs" not in outcome.facts
    assert outcome.metrics["perplexity"]["value"] > 1


@torch.no_grad()
@pytest.mark.parametrize("which", ["own decoder", "joint", "new decoder"])
def test_the_loss_of_a_report_is_the_sum_of_its_words(which, bundles, cell_of):
    made, batch = prepared(bundles[which], cell_of)
    total, count = made.losses(batch)
    assert float(made.loss(batch)) == pytest.approx(float(total.sum() / count.sum()), rel=1e-4)
    assert count.tolist() == (batch.text.mask.sum(1) - 1).tolist()
    alone = [WordsBatch(batch.image[i : i + 1], cut(batch.text, i), batch.answers[i : i + 1]) for i in range(3)]
    for i, one in enumerate(alone):
        assert float(made.losses(one)[0][0]) == pytest.approx(float(total[i]), rel=1e-3)
        mine, ours = made.write(one, 1)[0], made.write(batch, 1)[i]
        assert torch.equal(mine, ours[: len(mine)])


def prepared(encoders, cell_of):
    cell = cell_of(encoders, *SHORT)
    torch.manual_seed(0)
    made = author(encoders, own=True, decoder=SMALL, vocab=None, max_tokens=30, hide=None)
    for module in (*made.seeing.values(), made.writing):
        module.eval()
    data = task()._data(cell, made, cell.target.rows("test")[:3], None)
    return made, data[BatchKey(0, 0, np.arange(3))]


def cut(text, i):
    length = int(text.mask[i].sum())
    fields = (x[i : i + 1, :length] for x in (text.ids, text.mask, text.word, text.sentence))
    return Tokens(*fields)


def test_which_author_writes(bundles):
    common = {"decoder": SMALL, "vocab": None, "max_tokens": 400, "hide": None}
    own = author(bundles["own decoder"], own=True, **common)
    assert isinstance(own, DecoderAuthor)
    assert own.writing is bundles["own decoder"].parts["decoder"]
    assert own.max_tokens == 60  # no longer than the decoder can be
    assert own.seeing.keys() == {"vision", "aligner"}
    assert not own.new
    joint = author(bundles["joint"], own=True, **common)
    assert isinstance(joint, JointAuthor)
    places = bundles["joint"].joint.language_positions(joint.max_tokens)[2:]
    assert places.max() < bundles["joint"].text.max_tokens
    for encoders in bundles.values():
        new = author(encoders, own=False, **common)
        assert new.new
        assert new.writing.arguments["width"] == 32
        assert new.seeing.keys() == {"vision"}
    tokenizer = author(bundles["only eyes"], own=True, **common).tokenizer
    assert tokenizer.fingerprint == Tokenizer.load("synthetic").fingerprint


@torch.no_grad()
def test_hidden_words_in_training_and_all_in_validation(bundles, cell_of):
    made, batch = prepared(bundles["joint"], cell_of)
    whole = made.loss(batch)
    made.hide = {"share": 0.15, "most": 3, "end_share": 0.5}
    assert made.loss(batch) == whole
    made.writing.train()
    torch.manual_seed(0)
    hidden = [float(made.loss(batch)) for _ in range(3)]
    made.writing.eval()
    assert len(set(hidden)) == 3
    assert np.isfinite(hidden).all()


@torch.no_grad()
def test_published_writing_reads_the_true_words(bundles, cell_of):
    made, batch = prepared(bundles["joint"], cell_of)
    said = made.write(batch, 1, published=True)
    assert said.shape == batch.text.ids[:, 1:].shape
    outcome = task(published=True).run(cell_of(bundles["joint"], "task=report_generation", "adaptation=none"))
    assert outcome.metrics["label_f1"]["low"] is None
    assert "label_f1_micro" not in outcome.metrics
    assert outcome.metrics.keys() == outcome.trivial.keys()


def test_what_cannot_be_written_is_refused(bundles, cell_of, monkeypatch):
    none = ["task=report_generation", "adaptation=none"]
    with pytest.raises(UserError, match="only eyes has nothing that has learnt to write"):
        task().run(cell_of(bundles["only eyes"], *none))
    with pytest.raises(UserError, match="nothing that has learnt to write"):
        task(own=False).run(cell_of(bundles["joint"], *none))
    with pytest.raises(UserError, match=r"task.decoder.width=30 is no multiple of task.decoder.heads=4"):
        task(decoder={"width": 30, "heads": 4}).run(cell_of(bundles["only eyes"], *SHORT))
    with pytest.raises(UserError, match=r"task.labeler=guess: expected one of rules"):
        task(labeler="guess")
    with pytest.raises(UserError, match=r"task.beams=0"):
        task(beams=0)
    odd = bundles["own decoder"]
    text = bundles["new decoder"].text
    vocabulary = text.tokenizer.vocab[:-7]
    monkeypatch.setattr(odd.text, "tokenizer", Tokenizer(vocabulary, True))
    with pytest.raises(UserError, match=rf"knows {len(vocabulary) + 7} words and its vocabulary has {len(vocabulary)}"):
        task().run(cell_of(odd, *none))


def test_no_reports_are_refused(bundles, cell_of, monkeypatch):
    cell = cell_of(bundles["only eyes"], *SHORT)
    monkeypatch.setattr(type(cell.target.store), "long_enough", lambda self, *_: np.zeros(len(self.studies), bool))
    with pytest.raises(UserError, match="no train study with a frontal image and a report"):
        task().run(cell)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "epochs"), [("medvill", 60), ("convirt", 15)])
def test_some_hundred_steps_beat_frequencies_and_the_most_frequent_report(
    method, epochs, pretrained, cell_of, monkeypatch
):
    train = [
        f"adaptation.epochs={epochs}",
        "adaptation.batch_size=8",
        "adaptation.patience=60",
        "adaptation.warmup=0.1",
    ]
    rate = ["adaptation.lr=1e-3", "adaptation.head_lr_scale=1", "adaptation.schedule=cosine"]
    cell = cell_of(pretrained(method), "task=report_generation", "adaptation=finetune", *train, *rate)
    outcome = task(max_tokens=60, decoder=DECODER).run(dealt_anew(monkeypatch, cell))
    assert outcome.metrics["perplexity"]["value"] < outcome.trivial["perplexity"]["value"] / 5
    for name in ("bleu4", "rouge_l", "label_f1"):
        assert outcome.metrics[name]["value"] > outcome.trivial[name]["value"], name
