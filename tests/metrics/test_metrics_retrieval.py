import itertools

import numpy as np
import pytest

from vlp_bench.metrics import bootstrap_weights, retrieval_metrics, retrieval_ranks, trivial_retrieval
from vlp_bench.metrics import retrieval as module


def brute_ranks(similarity, queries, candidates):
    ranks = []
    for row, group in zip(similarity, queries, strict=True):
        own = row[candidates == group]
        ranks.append(0 if own.size == 0 else 1 + int(np.sum(row[candidates != group] >= own.max())))
    return np.array(ranks)


def sample(seed=0, images=23, texts=19):
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=(images, texts)), 1), rng.integers(0, 9, images), rng.integers(0, 9, texts)


def test_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.7], [0.1, 0.2, 0.3]])
    m = retrieval_metrics(similarity, ["s", "t", "u"], ["s", "t", "u"], [1, 2, 3], resamples=0)
    # Image t ranks text s first and ties its own text with u: pessimistically third.
    assert m["i2t/R@1"] == {"value": pytest.approx(2 / 3), "low": None, "high": None, "n": 3}
    assert m["i2t/R@5"]["value"] == 1.0
    assert m["i2t/mrr"]["value"] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert m["i2t/median_rank"]["value"] == 1.0
    # Text u is closer to image t; the others find their own.
    assert m["t2i/R@1"]["value"] == pytest.approx(2 / 3)
    assert m["t2i/mrr"]["value"] == pytest.approx((1 + 1 + 1 / 2) / 3)


def test_one_score_for_all_gets_the_last_rank():
    images, texts = retrieval_ranks(np.zeros((4, 4)), np.arange(4), np.arange(4))
    assert images.tolist() == texts.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize("seed", range(6))
def test_ranks_equal_brute_force_in_every_chunking(seed, monkeypatch):
    similarity, images, texts = sample(seed)
    expected = brute_ranks(similarity, images, texts), brute_ranks(similarity.T, texts, images)
    for size in (1, 40, 10**6):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", size)
        for source in (similarity, lambda start, stop: similarity[start:stop]):
            got = retrieval_ranks(source, images, texts)
            assert (got[0] == expected[0]).all()
            assert (got[1] == expected[1]).all()


def test_bootstrap_equals_repeating_the_queries():
    similarity, images, texts = sample(1)
    patients = images // 2
    m = retrieval_metrics(similarity, images, texts, patients, resamples=80, seed=3)
    ranks = brute_ranks(similarity, images, texts)
    asked = ranks > 0
    ranks, who = ranks[asked], patients[asked]
    drawn = [np.repeat(ranks, w) for w in np.concatenate(list(bootstrap_weights(who, 80, 3)))]
    for name, measure in {
        "R@5": lambda r: np.mean(r <= 5),
        "mrr": lambda r: np.mean(1 / r),
        "median_rank": np.median,
    }.items():
        low, high = np.percentile([measure(r) for r in drawn], [2.5, 97.5])
        row = m[f"i2t/{name}"]
        assert row["n"] == asked.sum()
        assert (row["value"], row["low"], row["high"]) == pytest.approx((measure(ranks), low, high))


def test_trivial_equals_enumerating_every_order():
    images, texts = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2, 3])
    t = trivial_retrieval(images, texts)
    for direction, queries, candidates in (("i2t", images, texts), ("t2i", texts, images)):
        ranks = []
        for order in itertools.permutations(candidates):
            ranks += [1 + order.index(q) for q in queries if q in candidates]
        ranks = np.array(ranks)
        assert t[f"{direction}/R@1"]["value"] == pytest.approx(np.mean(ranks <= 1))
        assert t[f"{direction}/R@5"]["value"] == pytest.approx(1.0)
        assert t[f"{direction}/mrr"]["value"] == pytest.approx(np.mean(1 / ranks))
        assert t[f"{direction}/median_rank"]["value"] == np.sort(ranks)[(len(ranks) - 1) // 2]
    assert t["t2i/R@1"]["n"] == 4
    assert t["i2t/mrr"]["low"] == t["i2t/mrr"]["high"] == t["i2t/mrr"]["value"]


def test_trivial_of_pairs():
    t = trivial_retrieval(np.arange(1000), np.arange(1000))
    assert t["i2t/R@10"]["value"] == pytest.approx(0.01)
    assert t["i2t/median_rank"]["value"] == 500
    assert t["t2i/mrr"]["value"] == pytest.approx(np.sum(1 / np.arange(1, 1001)) / 1000)


def test_random_scores_come_close_to_trivial():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(150), 2)
    m = retrieval_metrics(rng.normal(size=(300, 300)), groups, groups, groups, resamples=200)
    t = trivial_retrieval(groups, groups)
    for name in ("i2t/R@10", "t2i/mrr", "i2t/median_rank"):
        assert m[name]["low"] <= t[name]["value"] <= m[name]["high"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"similarity": np.zeros((2, 3))}, "2 images and 2 texts"),
        ({"similarity": lambda start, stop: np.zeros((1, 1))}, "have shape"),
        ({"similarity": np.full((2, 2), np.nan)}, "not finite"),
        ({"image_group": []}, "image_group"),
        ({"text_group": [7, 8]}, "share no value"),
        ({"patients": [1]}, "for 2 images"),
        ({"image_group": [0, 0]}, "several patients"),
        ({"text_patients": [1]}, "for 2 texts"),
    ],
)
def test_refusals(change, message):
    arguments = {"similarity": np.zeros((2, 2)), "image_group": [0, 1], "text_group": [0, 1], "patients": [1, 2]}
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**(arguments | change))
