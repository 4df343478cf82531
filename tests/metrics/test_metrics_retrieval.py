import itertools
import subprocess
import sys

import numpy as np
import pytest

from vlp_bench.metrics import bootstrap_weights, retrieval_metrics, retrieval_ranks, trivial_retrieval
from vlp_bench.metrics import retrieval as module
from vlp_bench.metrics.retrieval import relevance_columns, trivial_relevance


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


def test_relevance_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    relevant = np.array([[0, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    found = relevance_columns(scores, relevant, (1, 2))
    nan = np.nan
    # the third query's scores are equal: its right candidate comes last; the fourth has none
    np.testing.assert_array_equal(found["hit@1"], [0, 1, 0, nan])
    np.testing.assert_array_equal(found["hit@2"], [1, 1, 0, nan])
    np.testing.assert_array_equal(found["precision@2"], [0.5, 0.5, 0, nan])
    np.testing.assert_array_equal(found["recall@2"], [0.5, 1, 0, nan])
    np.testing.assert_array_equal(found["mrr"], [1 / 2, 1, 1 / 4, nan])


def test_trivial_relevance_is_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    relevant = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    orders = np.stack([rng.permuted(np.tile(np.arange(5.0), (3, 1)), axis=1) for _ in range(4000)])
    drawn = [relevance_columns(scores, relevant, (1, 3)) for scores in orders]
    for name, exact in trivial_relevance(relevant, (1, 3)).items():
        mean = np.stack([columns[name] for columns in drawn]).mean(0)
        np.testing.assert_allclose(mean, exact, atol=0.03, equal_nan=True)
    assert np.isnan(exact[2])


def test_relevance_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="shape"):
        relevance_columns(np.zeros((2, 3)), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match="finite"):
        relevance_columns(np.full((1, 2), np.nan), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="ties"):
        relevance_columns(np.zeros((1, 2)), np.ones((1, 2), bool), ties="first")


@pytest.mark.slow
def test_ten_thousand_by_ten_thousand_fit_in_two_gib():
    """Ranks of a dual encoder's vectors, in a process of their own whose memory is measured.

    Not by getrusage, whose maximum a new process takes over from the one that starts it.
    """
    code = (
        "import numpy as np\n"
        "from vlp_bench.metrics.retrieval import retrieval_ranks\n"
        "a, b = (np.random.default_rng(i).standard_normal((10000, 128), np.float32) for i in (0, 1))\n"
        "ids = np.arange(10000)\n"
        "image, text = retrieval_ranks(lambda start, stop: a[start:stop] @ b.T, ids, ids)\n"
        "assert image.min() >= 1 and text.max() <= 10000\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) < 2 * 2**20
