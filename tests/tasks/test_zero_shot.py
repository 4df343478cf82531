"""Zero-shot classification: prompts, what is chosen where, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vlp_bench.config import compose_verb, plain
from vlp_bench.errors import UserError
from vlp_bench.tasks.base import Target
from vlp_bench.tasks.zero_shot import Prompts, ZeroShot, summed_scores

SHIPPED = plain(compose_verb("evaluate", ["task=zero_shot"]).task)["prompts"]
FEW = {k: SHIPPED[k] for k in ("observed", "pair")}


def task(prompts=FEW, **more):
    return ZeroShot("auroc", prompts, list(prompts), **more)


def test_sentences_of_a_set():
    prompts = Prompts("x", SHIPPED["pair"], ["Edema", "Pleural Effusion"])
    assert prompts.texts == ["edema", "pleural effusion", "no edema", "no pleural effusion"]
    prompts = Prompts("x", {"positive": ["a {label}", "b {label}"], "words": {"E": ["x", "y"], "F": ["z"]}}, ["E", "F"])
    assert prompts.texts == ["a x", "a y", "b x", "b y", "a z", "b z"]
    positive, negative = prompts.pooled(torch.tensor([[1.0, 2.0, 3.0, 6.0, 10.0, 20.0]]))
    assert positive.tolist() == [[3.0, 15.0]]
    assert negative is None
    assert len(Prompts("x", SHIPPED["combined"], ["Edema"]).texts) == 3


def test_a_prompt_of_one_word_keeps_it(pretrained):
    """Cleaning drops such sentences of reports; as prompts all labels would be the same empty text."""
    texts = pretrained("mgca").encode_texts(["edema", "pneumothorax", "no edema"])
    assert (texts.index.word >= 0).sum(1).min() > 0
    assert not torch.allclose(texts.pooled[0], texts.pooled[1])


def test_a_set_without_a_label_is_refused():
    with pytest.raises(UserError, match="combined has no words for Hernia"):
        Prompts("combined", SHIPPED["combined"], ["Edema", "Hernia"])
    with pytest.raises(UserError, match="no positive"):
        Prompts("mine", {"negative": ["no {label}"]}, ["Edema"])
    with pytest.raises(UserError, match=r"task\.sets"):
        ZeroShot("auroc", SHIPPED, ["observd"])


def test_an_oracle_is_found_on_validation_and_gives_the_numbers(pretrained, cell_of, monkeypatch):
    cell = cell_of(pretrained("mgca"), "task=zero_shot", "adaptation=none")
    truth = cell.target.targets

    def scores(self, cell, rows, sets):
        noise = np.random.default_rng(len(rows)).standard_normal(truth[rows].shape)
        return {"observed": noise, "pair": truth[rows] * 2.0 - 1 + 0.1 * noise}

    monkeypatch.setattr(ZeroShot, "_scores", scores)
    outcome = task().run(cell)
    assert outcome.facts["chosen_prompts"] == "pair"
    assert outcome.metrics["auroc"]["value"] == 1.0
    both = [outcome.facts["by_prompts"][name]["auroc"]["value"] for name in ("observed", "pair")]
    over = outcome.metrics["auroc/over prompts"]
    assert (over["value"], over["low"], over["high"]) == (pytest.approx(np.mean(both)), min(both), max(both))
    assert outcome.metrics.keys() == outcome.trivial.keys()


@pytest.mark.parametrize("method", ["mgca", "medvill", "gloria"])
def test_scores_are_similarities_of_image_and_prompt(method, pretrained, cell_of):
    encoders = pretrained(method)
    cell = cell_of(encoders, "task=zero_shot", "adaptation=none", "adaptation.batch_size=16")
    outcome = task({"pair": SHIPPED["pair"]}).run(cell)
    table = outcome.predictions
    rows = cell.target.rows("test")
    images, texts = encoders.vision(cell.pixels(rows[:3])), encoders.encode_texts(["pneumothorax", "no pneumothorax"])
    expected = encoders.similarity(images, texts)
    np.testing.assert_allclose(table["score_Pneumothorax"][:3], expected[:, 0] - expected[:, 1], atol=1e-4)
    own = [roc_auc_score(table[f"target_{n}"], table[f"score_{n}"]) for n in outcome.labels]
    assert outcome.metrics["auroc"]["value"] == pytest.approx(np.mean(own), abs=1e-6)


def classes(store):
    """Devices or none: two classes that exclude each other."""
    names = {"Devices": "Support Devices", "None": "!Support Devices"}
    return Target(store, name="synthetic", kind="multiclass", labels=names)


@pytest.mark.parametrize("method", ["prior", "gloria"])
def test_summed_scores_of_classes(method, pretrained, cell_of, store):
    cell = cell_of(pretrained(method), "task=zero_shot", "adaptation=none", target=classes(store))
    outcome = task({"observed": SHIPPED["observed"]}, score="summed").run(cell)
    table = outcome.predictions
    np.testing.assert_allclose(table[["score_Devices", "score_None"]].sum(axis=1), 2.0, rtol=1e-5)
    assert 0 <= outcome.metrics["accuracy"]["value"] <= 1
    assert set(outcome.facts["agreement"]) == {"precision", "recall", "kappa"}


def test_summed_scores_by_hand():
    got = summed_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, float(np.log(3))]]), 0.5)
    torch.testing.assert_close(got, torch.tensor([[0.625, 0.875]]))


def test_refusals(pretrained, cell_of, store):
    with pytest.raises(UserError, match="no aligner"):
        task().run(cell_of(pretrained("lsp"), "task=zero_shot", "adaptation=none"))
    with pytest.raises(UserError, match="multiclass"):
        task(score="summed").run(cell_of(pretrained("prior"), "task=zero_shot", "adaptation=none"))
    cell = cell_of(pretrained("mgca"), "task=zero_shot", "adaptation=none", target=classes(store))
    with pytest.raises(UserError, match="local scores"):
        task({"observed": SHIPPED["observed"]}, score="summed").run(cell)
