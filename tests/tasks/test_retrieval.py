"""Retrieval by its three rules, with dual encoders and with a joint one."""

import numpy as np
import pytest

from vlp_bench.errors import UserError
from vlp_bench.tasks import retrieval as module
from vlp_bench.tasks.retrieval import Retrieval
from vlp_bench.tasks.scoring import Scores, pairs


@pytest.fixture(scope="module")
def dual(pretrained):
    return pretrained("mgca")


@pytest.fixture(scope="module")
def joint(pretrained):
    return pretrained("medvill")


@pytest.mark.parametrize("method", ["mgca", "medvill", "prior", "gloria"])
def test_scores_by_pair_and_by_block_are_those_of_the_encoders(method, pretrained, cell_of, monkeypatch):
    monkeypatch.setattr("vlp_bench.tasks.scoring.PAIRS", 7)
    encoders = pretrained(method)
    cell = cell_of(encoders, "task=retrieval", "adaptation=none", "adaptation.batch_size=5")
    rows, studies = (part[:9] for part in pairs(cell))
    scores = Scores(cell, rows, studies)
    images = encoders.vision(cell.pixels(rows))
    expected = encoders.similarity(images, encoders.text(scores.tokens(np.arange(9)))).numpy()
    np.testing.assert_allclose(scores.matrix(), expected, atol=2e-5)
    np.testing.assert_allclose(scores.block(2, 6), expected[2:6], atol=2e-5)
    image, text = np.array([8, 0, 3, 3, 0]), np.array([1, 8, 3, 2, 0])
    np.testing.assert_allclose(scores.of(image, text), expected[image, text], atol=2e-5)


def test_own_report(dual, cell_of):
    cell = cell_of(dual, "task=retrieval", "adaptation=none")
    outcome = Retrieval("i2t/R@5").run(cell)
    assert outcome.metrics.keys() == outcome.trivial.keys()
    for name in ("i2t/R@5", "t2i/R@1", "t2i/mrr"):
        assert outcome.predictions[f"mean_{name}"].mean() == pytest.approx(outcome.metrics[name]["value"])
    assert outcome.trivial["i2t/R@1"]["value"] == pytest.approx(1 / len(outcome.predictions))


def test_same_class_asks_as_many_of_each_class_with_one_label(dual, cell_of):
    cell = cell_of(dual, "task=retrieval", "adaptation=none", split="train")
    outcome = Retrieval("i2t/precision@5", relevant="class", per_class=4).run(cell)
    assert outcome.facts["queries"] == outcome.facts["candidates"] == 16
    rows = cell.target.store.images.set_index("image_id").index.get_indexer(outcome.predictions["item_id"])
    labels = cell.target.targets[rows]
    assert (labels.sum(1) == 1).all()
    assert (labels.sum(0) == 4).all()
    # a quarter of the candidates is right, whatever the query
    assert outcome.trivial["i2t/precision@5"]["value"] == pytest.approx(0.25)
    misses = np.prod([(12 - i) / (16 - i) for i in range(5)])
    assert outcome.trivial["t2i/hit@5"]["value"] == pytest.approx(1 - misses)


@pytest.mark.parametrize("which", ["dual", "joint"])
def test_equal_labels_in_pools(which, cell_of, request):
    cell = cell_of(request.getfixturevalue(which), "task=retrieval", "adaptation=none")
    outcome = Retrieval("i2t/mrr", relevant="labels", pool=6).run(cell)
    assert outcome.facts["candidates"] == 6
    assert outcome.metrics.keys() == outcome.trivial.keys()
    # its own report is among the candidates: nobody is left out
    assert outcome.metrics["i2t/recall@5"]["n"] == outcome.facts["queries"]
    assert 0 <= outcome.metrics["t2i/mrr"]["value"] <= 1


def test_a_perfect_order_is_told_apart_from_a_random_one(dual, cell_of, monkeypatch):
    cell = cell_of(dual, "task=retrieval", "adaptation=none")
    rows, _ = pairs(cell)
    same = module._same(cell.target.targets[rows])
    monkeypatch.setattr(Scores, "of", lambda self, i, t: same[i, t].astype(np.float32))
    outcome = Retrieval("i2t/mrr", relevant="labels", pool=20).run(cell)
    assert outcome.metrics["i2t/mrr"]["value"] == 1.0
    assert outcome.trivial["i2t/mrr"]["value"] < 0.9


def test_pools_hold_the_own_place_and_no_place_twice():
    pools = module._pools(30, 7, seed=3)
    assert (pools[:, 0] == np.arange(30)).all()
    assert all(len(set(pool)) == 7 for pool in pools.tolist())
    assert (pools != module._pools(30, 7, seed=4)).any()
    assert module._pools(3, 100, seed=0).shape == (3, 3)


def test_refusals(pretrained, cell_of):
    alone = pretrained("lsp")
    with pytest.raises(UserError, match="has no aligner"):
        Retrieval("i2t/R@5").run(cell_of(alone, "task=retrieval", "adaptation=none"))
    with pytest.raises(UserError, match="relevant=label"):
        Retrieval("x", relevant="label")
    with pytest.raises(UserError, match=r"task\.pool=100"):
        Retrieval("x", relevant="class", pool=100)
