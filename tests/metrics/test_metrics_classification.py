import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score

from vlp_bench.metrics import bootstrap_weights, choose_thresholds, classification_metrics, trivial_classification
from vlp_bench.metrics.classification import agreement

LABELS = ["a", "b", "c", "d"]


def sample(seed=0, n=200, levels=12, unknown=0.2):
    """Scores with many ties, targets with unknowns; label c has no positive, label d no negative."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, 4)) < [0.4, 0.1, 0.0, 1.0]).astype(float)
    scores = np.round((np.nan_to_num(targets) + rng.normal(size=(n, 4))) * levels / 4) / levels
    targets[rng.random((n, 4)) < unknown] = np.nan
    targets[0] = [1, 1, 0, 1]
    return scores, targets, rng.integers(0, n // 3, n)


def value(metrics, name):
    return metrics[name]["value"]


def test_by_hand():
    scores, targets = np.array([0.9, 0.8, 0.8, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    m = classification_metrics(scores, targets, np.arange(4), [0.8], labels=["x"], kind="binary", resamples=0)
    assert value(m, "auroc") == pytest.approx(3.5 / 4)  # pairs: 1, 1, one half, 1
    assert value(m, "auprc") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert value(m, "f1") == pytest.approx(2 * 2 / (3 + 2))
    assert value(m, "accuracy") == pytest.approx(3 / 4)
    assert m["auroc"] == {"value": value(m, "auroc"), "low": None, "high": None, "n": 4}


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scikit_learn(seed):
    scores, targets, patients = sample(seed)
    limits = np.full(4, 0.5)
    m = classification_metrics(scores, targets, patients, limits, labels=LABELS, kind="multilabel", resamples=20)
    expected = {"auroc": [], "auprc": [], "f1": [], "accuracy": []}
    for i, label in enumerate(LABELS[:2]):
        known = ~np.isnan(targets[:, i])
        t, s = targets[known, i], scores[known, i]
        per = {
            "auroc": roc_auc_score(t, s),
            "auprc": average_precision_score(t, s),
            "f1": f1_score(t, s >= 0.5),
            "accuracy": accuracy_score(t, s >= 0.5),
        }
        for name, number in per.items():
            assert value(m, f"{name}/{label}") == pytest.approx(number, abs=1e-12)
            assert m[f"{name}/{label}"]["n"] == known.sum()
            expected[name].append(number)
    for name, numbers in expected.items():
        assert value(m, name) == pytest.approx(np.mean(numbers), abs=1e-12)
        assert m[name]["low"] <= value(m, name) <= m[name]["high"]


@pytest.mark.parametrize("label", ["c", "d"])
def test_label_with_one_class_has_no_value(label):
    scores, targets, patients = sample()
    m = classification_metrics(scores, targets, patients, np.zeros(4), labels=LABELS, kind="multilabel", resamples=9)
    for name in ("auroc", "auprc", "f1", "accuracy"):
        row = m[f"{name}/{label}"]
        assert (row["value"], row["low"], row["high"]) == (None, None, None)
        assert row["n"] > 0


def test_no_label_can_be_ranked():
    m = classification_metrics(np.zeros(3), np.zeros(3), [1, 2, 3], [0.5], labels=["x"], kind="binary")
    assert m["auroc"] == {"value": None, "low": None, "high": None, "n": 3}


def test_bootstrap_equals_repeating_the_items():
    scores, targets, patients = sample(3, n=40)
    resamples = 60
    m = classification_metrics(
        scores, targets, patients, np.full(4, 0.5), labels=LABELS, kind="multilabel", resamples=resamples, seed=4
    )
    brute = {"auroc": [], "auprc": [], "f1": [], "accuracy": []}
    for weights in np.concatenate(list(bootstrap_weights(patients, resamples, 4))):
        items = np.repeat(np.arange(40), weights)
        known = ~np.isnan(targets[items, 0])
        t, s = targets[items, 0][known], scores[items, 0][known]
        brute["auroc"].append(roc_auc_score(t, s))
        brute["auprc"].append(average_precision_score(t, s))
        brute["f1"].append(f1_score(t, s >= 0.5))
        brute["accuracy"].append(accuracy_score(t, s >= 0.5))
    for name, numbers in brute.items():
        low, high = np.percentile(numbers, [2.5, 97.5])
        assert m[f"{name}/a"]["low"] == pytest.approx(low, abs=1e-12)
        assert m[f"{name}/a"]["high"] == pytest.approx(high, abs=1e-12)


def test_resample_without_positives_is_left_out():
    targets = np.array([1.0] + [0.0] * 9)
    m = classification_metrics(targets, targets, np.arange(10), [0.5], labels=["x"], kind="binary", resamples=50)
    assert m["auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 10}


def test_multiclass_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 3, 150)
    scores = np.round(np.eye(3)[classes] + rng.normal(size=(150, 3)), 1)
    scores += np.arange(3) * 1e-9  # argmax must not depend on how ties are broken
    m = classification_metrics(scores, classes, np.arange(150), None, labels=["x", "y", "z"], kind="multiclass")
    called = scores.argmax(axis=1)
    one_hot = np.eye(3)[classes]
    assert value(m, "auroc") == pytest.approx(roc_auc_score(one_hot, scores, average="macro"))
    assert value(m, "auprc") == pytest.approx(average_precision_score(one_hot, scores, average="macro"))
    assert value(m, "f1") == pytest.approx(f1_score(classes, called, average="macro"))
    assert value(m, "accuracy") == pytest.approx(accuracy_score(classes, called))
    assert "accuracy/x" not in m
    again = classification_metrics(scores, one_hot, np.arange(150), None, labels=["x", "y", "z"], kind="multiclass")
    assert again == m


def test_multiclass_unknown_items_are_left_out():
    classes = np.array([0, 1, np.nan, 1, 0])
    m = classification_metrics(
        np.eye(2)[[0, 1, 0, 1, 1]], classes, range(5), None, labels=["x", "y"], kind="multiclass"
    )
    assert m["accuracy"]["n"] == 4
    assert value(m, "accuracy") == pytest.approx(3 / 4)


def test_trivial_is_a_constant_score():
    rng = np.random.default_rng(0)
    train = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, np.nan]])
    test = (rng.random((300, 2)) < [0.3, 0.2]).astype(float)
    t = trivial_classification(train, test, rng.integers(0, 90, 300), labels=["x", "y"], kind="multilabel")
    assert t["auroc"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 300}
    p = test.mean(axis=0)
    assert value(t, "auprc/x") == pytest.approx(p[0])
    assert t["auprc/x"]["low"] < p[0] < t["auprc/x"]["high"]
    assert value(t, "f1/y") == pytest.approx(2 * p[1] / (1 + p[1]))
    assert value(t, "accuracy/x") == pytest.approx(p[0])  # the majority of the training set is positive
    assert value(t, "accuracy/y") == pytest.approx(1 - p[1])


def test_trivial_multiclass_names_the_majority():
    t = trivial_classification([0, 0, 1], [0, 1, 1, 2], range(4), labels=["x", "y", "z"], kind="multiclass")
    assert value(t, "accuracy") == pytest.approx(1 / 4)
    assert value(t, "f1") == pytest.approx(f1_score([0, 1, 1, 2], [0] * 4, average="macro", zero_division=0))


def test_trivial_without_two_classes():
    t = trivial_classification(np.zeros((3, 1)), np.zeros((3, 1)), range(3), labels=["x"], kind="binary")
    assert t["auroc/x"]["value"] is None


@pytest.mark.parametrize("seed", range(4))
def test_threshold_has_the_best_f1(seed):
    scores, targets, _ = sample(seed)
    chosen = choose_thresholds(scores, targets)
    for i in range(2):
        known = ~np.isnan(targets[:, i])
        t, s = targets[known, i], scores[known, i]
        reached = {c: f1_score(t, s >= c) for c in np.unique(s)}
        best = max(reached.values())
        assert chosen[i] == max(c for c, f in reached.items() if f == pytest.approx(best, abs=1e-12))
    c = ~np.isnan(targets[:, 2])
    assert not (scores[c, 2] >= chosen[2]).any()
    assert choose_thresholds([0.1, 0.2], [np.nan, np.nan]).tolist() == [0.5]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "regression"}, "kind must be"),
        ({"kind": "binary"}, "one label"),
        ({"scores": np.full((4, 2), np.nan)}, "not all finite"),
        ({"scores": np.zeros((3, 2))}, "shape"),
        ({"targets": np.full((4, 2), 2.0)}, "0, 1 or nan"),
        ({"targets": np.zeros((4, 3))}, "do not fit"),
        ({"thresholds": [0.5]}, "thresholds"),
        ({"thresholds": None}, "thresholds"),
        ({"patients": np.arange(3)}, "3 patients for 4 items"),
        ({"kind": "multiclass", "targets": np.array([0, 1, 2, 1])}, "from 0 to 1"),
        ({"kind": "multiclass", "targets": np.ones((4, 2))}, "exactly one class"),
    ],
)
def test_refusals(change, message):
    given_ = {
        "scores": np.zeros((4, 2)),
        "targets": np.zeros((4, 2)),
        "patients": np.arange(4),
        "thresholds": [0.5, 0.5],
        "labels": ["x", "y"],
        "kind": "multilabel",
    } | change
    if given_["kind"] == "binary":
        given_["scores"] = np.zeros((4, 2))
    with pytest.raises(ValueError, match=message):
        classification_metrics(
            given_.pop("scores"), given_.pop("targets"), given_.pop("patients"), given_.pop("thresholds"), **given_
        )


items = st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


@settings(max_examples=60, deadline=None)
@given(items, st.randoms(use_true_random=False))
def test_ranking_ignores_monotone_transforms_and_order(rows, random):
    def measured(pairs, transform):
        scores = np.array([transform(s) for s, _ in pairs], float)
        targets = np.array([t for _, t in pairs], float)
        m = classification_metrics(scores, targets, range(len(pairs)), [0], labels=["x"], kind="binary", resamples=0)
        return m["auroc"]["value"], m["auprc"]["value"]

    plain = measured(rows, float)
    assert measured(rows, lambda s: np.exp(s / 3.0)) == pytest.approx(plain, abs=1e-12)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert measured(shuffled, float) == pytest.approx(plain, abs=1e-12)
    mirrored = measured(rows, lambda s: -s)
    assert mirrored[0] == pytest.approx(1 - plain[0], abs=1e-12)


def test_agreement_by_hand():
    targets = np.eye(3)[[0, 0, 1, 2]]
    scores = np.eye(3)[[0, 1, 1, 0]]
    found = agreement(scores, targets)
    # precision 1/2, 1/2, 0; recall 1/2, 1, 0; agreed 2/4, by chance (2 * 2 + 1 * 2 + 1 * 0) / 16
    assert found["precision"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(1 / 2)
    assert found["kappa"] == pytest.approx((0.5 - 6 / 16) / (1 - 6 / 16))
