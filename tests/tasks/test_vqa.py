"""Visual question answering with a joint encoder and with dual ones."""

import doctest
import json

import numpy as np
import pytest
import torch
from dealing import dealt_anew

from vlp_bench.encoders.bundle import Encoders
from vlp_bench.errors import UserError
from vlp_bench.metrics.bootstrap import mean_entries
from vlp_bench.tasks import vqa as module
from vlp_bench.tasks.vqa import VQA, Answerer, accuracy_columns, answer_loss, questions, soft_targets
from vlp_bench.tasks.words import pair_vector

SHORT = ["task=vqa", "adaptation=frozen", "adaptation.epochs=2", "adaptation.batch_size=32", "adaptation.min_steps=0"]


@pytest.fixture(scope="module")
def dual(pretrained):
    return pretrained("convirt")


@pytest.fixture(scope="module")
def joint(pretrained):
    return pretrained("medvill")


def with_extra(monkeypatch, cell, *lists, **fields):
    """The cell, with these questions instead of those of the first images."""
    images = cell.target.store.images.copy()
    images["extra"] = ""
    for place, asked in enumerate(lists):
        images.loc[images.index[place], "extra"] = json.dumps({"questions": asked})
    monkeypatch.setitem(cell.target.store.__dict__, "images", images)
    return cell


def test_examples():
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("which", ["dual", "joint"])
def test_answers_are_measured_over_all_and_by_type(which, request, cell_of):
    cell = cell_of(request.getfixturevalue(which), *SHORT)
    outcome = VQA("accuracy").run(cell)
    assert outcome.metrics.keys() == outcome.trivial.keys()
    assert {"accuracy", "accuracy/closed", "accuracy/laterality", "accuracy/open"} == outcome.metrics.keys()
    table = outcome.predictions
    assert table["item_id"].is_unique
    right = table["answered"] == table["answer"]
    assert outcome.metrics["accuracy"]["value"] == pytest.approx(right.mean())
    assert table["mean_accuracy/closed"].mean() == pytest.approx(right[table["type"] == "closed"].mean())
    assert outcome.metrics["accuracy/open"]["n"] == (table["type"] == "open").sum()
    # Of each study's questions one is asked, whichever images it has.
    store = cell.target.store
    study = store.images.set_index("image_id")["study"][table["image_id"]].to_numpy()
    assert not table.assign(study=study).duplicated(["study", "question"]).any()
    train = questions(cell.target).query("split == 'train'")
    unseen = ~table["answer"].isin(set(train["answer"]))
    assert outcome.facts["unanswerable_share"] == pytest.approx(unseen.mean())
    assert not right[unseen].any()
    pictures = list(VQA("accuracy").pictures(cell, outcome, 3))
    assert len(pictures) == 3
    assert table["question"].iloc[0] in pictures[0].caption


def test_the_trivial_answer_is_the_most_frequent_of_its_type(dual, cell_of):
    cell = cell_of(dual, *SHORT, "adaptation.epochs=1")
    outcome = VQA("accuracy").run(cell)
    asked = questions(cell.target)
    train, test = (asked[asked["split"] == s] for s in ("train", "test"))
    for kind in ("open", "laterality"):
        common = train[train["type"] == kind]["answer"].value_counts()
        expected = (test[test["type"] == kind]["answer"] == common.index[0]).mean()
        assert common.iloc[0] > common.iloc[1]
        assert outcome.trivial[f"accuracy/{kind}"]["value"] == pytest.approx(expected)


def test_layout_of_vqa_rad_and_soft_scores(dual, cell_of, monkeypatch):
    cell = with_extra(
        monkeypatch,
        cell_of(dual, *SHORT),
        [
            {"question": " Is it  normal? ", "answer": "Yes.", "answer_type": "CLOSED ", "image_organ": "CHEST"},
            {"question": "What is it?", "answer": "x", "answer_type": "OPEN", "scores": {"X": 1, "Mass": 0.3}},
            {"question": "What organ?", "answer": 0, "type": "open", "image_organ": "HEAD"},
        ],
    )
    found = questions(cell.target)
    assert found["question"].tolist() == ["Is it normal?", "What is it?", "What organ?"]
    assert found["type"].tolist() == ["closed", "open", "open"]
    assert found["answer"].tolist() == ["yes", "x", "0"]
    np.testing.assert_allclose(soft_targets(found["scores"], ["mass", "yes"]), [[0, 1], [0.3, 0], [0, 0]])
    assert questions(cell.target, "chest")["question"].tolist() == ["Is it normal?"]
    with pytest.raises(UserError, match="no questions on organ=abd"):
        questions(cell.target, "abd")


@pytest.mark.parametrize("empty", ["question", "answer", "type"])
def test_empty_fields_are_refused(empty, dual, cell_of, monkeypatch):
    good = {"question": "Is it?", "answer": "no", "type": "closed"}
    cell = with_extra(monkeypatch, cell_of(dual, *SHORT), [good, good | {empty: " "}])
    with pytest.raises(UserError, match=f"question 2 of image .* has an empty `{empty}`"):
        VQA("accuracy").run(cell)


def test_what_cannot_be_asked_is_refused(dual, joint, cell_of, monkeypatch, pretrained):
    blind = Encoders({"vision": dual.vision}, {"name": "only eyes"})
    with pytest.raises(UserError, match="only eyes has only an image encoder"):
        VQA("accuracy").run(cell_of(blind, *SHORT))
    with pytest.raises(UserError, match="adaptation=none does not train"):
        VQA("accuracy").run(cell_of(dual, "task=vqa", "adaptation=none"))
    with pytest.raises(UserError, match=r"task.vector=sum: expected one of pooled, cls, product"):
        VQA("accuracy", vector="sum")
    with pytest.raises(UserError, match="has no questions"):
        VQA("accuracy").run(with_extra(monkeypatch, cell_of(dual, *SHORT)))
    asked = [{"question": "Is it?", "answer": "no", "type": "closed"}]
    with pytest.raises(UserError, match=r"has no (val|test|train) question"):
        VQA("accuracy").run(with_extra(monkeypatch, cell_of(dual, *SHORT), asked))
    crossless = pretrained("medvill", "tiny", "method.attention=noncross")
    with pytest.raises(UserError, match="no pooler"):
        Answerer(crossless, 3, "pooled", False, cell_of(crossless, *SHORT).adaptation)


def test_the_image_encoder_may_stay_frozen(joint, cell_of, monkeypatch):
    seen = []

    def spy(cell, model, train, val):
        seen.append({n: all(p.requires_grad for p in part.parameters()) for n, part in model.parts.items()})
        return {}

    monkeypatch.setattr(module, "fit", spy)
    cell = cell_of(joint, "task=vqa", "adaptation=finetune")
    for train_vision in (True, False):
        VQA("accuracy", train_vision=train_vision).run(cell)
    assert seen == [{"vision": v, "text": True, "joint": True} for v in (True, False)]


def test_losses_of_answers():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([[0, 1.0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0]])
    log = logits.log_softmax(1)
    expected = -(log[0, 1] + (log[1, 0] + log[1, 2]) / 2) / 2
    assert torch.allclose(answer_loss(logits, answers, binary=False), expected)
    p = logits.sigmoid()
    each = -(answers * p.log() + (1 - answers) * (1 - p).log())
    assert torch.allclose(answer_loss(logits, answers, binary=True), each.mean(), atol=1e-6)


def test_vectors_of_a_pair(joint):
    hidden = torch.randn(2, 9, joint.text.width)
    assert torch.equal(pair_vector(joint.joint, hidden, 4, "product"), hidden[:, 0] * hidden[:, 5])
    assert torch.equal(pair_vector(joint.joint, hidden, 4, "cls"), hidden[:, 0])
    assert pair_vector(joint.joint, hidden, 4, "pooled").abs().max() < 1


def test_accuracy_by_hand():
    columns = accuracy_columns(np.array([1.0, 0.3, 0.0]), ["open", "open", "closed"])
    got = mean_entries(columns, ["a", "b", "c"], 20)
    assert got["accuracy"]["value"] == pytest.approx(1.3 / 3)
    assert got["accuracy/open"] | {"low": 0, "high": 0} == {"value": pytest.approx(0.65), "low": 0, "high": 0, "n": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["convirt", "medvill"])
def test_image_and_question_are_both_used(method, pretrained, cell_of, monkeypatch):
    """One of two questions has always the same answer, that of the other is seen in the image."""
    train = ["adaptation.epochs=25", "adaptation.batch_size=16", "adaptation.patience=25", "adaptation.warmup=0.1"]
    rate = ["adaptation.lr=3e-4", "adaptation.head_lr_scale=1", "adaptation.schedule=cosine"]
    cell = cell_of(pretrained(method), "task=vqa", "adaptation=finetune", *train, *rate)
    store = dealt_anew(monkeypatch, cell).target.store
    light = store.pixels(np.arange(len(store.images))).mean((1, 2))
    bright = light > np.median(light[store.images["frontal"]])
    asked = [
        [
            {"question": "Is the picture bright?", "answer": "yes" if yes else "no", "type": "closed"},
            {"question": "Which animal is shown?", "answer": "human", "type": "closed"},
        ]
        for yes in bright
    ]
    outcome = VQA("accuracy", vector="product").run(with_extra(monkeypatch, cell, *asked))
    assert outcome.trivial["accuracy"]["value"] == pytest.approx(0.5, abs=0.02)
    # Without the image three in four would be right.
    assert outcome.metrics["accuracy"]["value"] > 0.85


def test_a_training_answer_outside_the_given_vocabulary_is_refused(dual, cell_of):
    with pytest.raises(UserError, match=r"is not in the vocabulary of 2 \(task.answers\)"):
        VQA("accuracy", answers=["Yes", "no"]).run(cell_of(dual, *SHORT))
