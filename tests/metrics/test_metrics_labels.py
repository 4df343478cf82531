import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from vlp_bench.metrics.classification import averaged_scores
from vlp_bench.metrics.labels import MACRO, MICRO, label_metrics, published_label_metrics

NAN = np.nan


def sample(seed=0, reports=60, labels=7):
    rng = np.random.default_rng(seed)
    generated, true = rng.choice([1, 0, -1, NAN], (2, reports, labels), p=[0.3, 0.2, 0.1, 0.4])
    return generated, true, rng.integers(0, 20, reports)


def test_against_scikit_learn():
    generated, true, patients = sample()
    true[:, 3] = np.where(true[:, 3] == 1, 0, true[:, 3])  # a label that no true report affirms
    got = label_metrics(generated, true, patients, resamples=20)
    assert set(got) == {*MACRO, *MICRO}
    a, b = true == 1, generated == 1
    occurs = a.any(0)
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        macro = score(a[:, occurs], b[:, occurs], average="macro", zero_division=0)
        assert got[f"label_{name}"]["value"] == pytest.approx(macro)
        assert got[f"label_{name}_micro"]["value"] == pytest.approx(score(a, b, average="micro", zero_division=0))
    assert got["label_accuracy"]["value"] == pytest.approx((a == b)[:, occurs].mean())


def test_silence_is_not_rewarded():
    true = np.array([[1, NAN], [NAN, 1.0]])
    got = label_metrics(np.full((2, 2), NAN), true, ["a", "b"], resamples=0)
    assert got["label_f1"]["value"] == got["label_precision"]["value"] == got["label_f1_micro"]["value"] == 0
    # Published, two silent sides agree.
    assert published_label_metrics(np.full((2, 2), NAN), true)["accuracy"] == 0.5


def test_doubt_and_denial_are_no_positives():
    got = label_metrics([[-1], [0], [1]], [[1], [1], [1]], [1, 2, 3], resamples=0)
    assert got["label_recall"]["value"] == pytest.approx(1 / 3)
    assert got["label_precision"]["value"] == 1


def test_published_by_hand():
    generated = np.array([[1, NAN], [0, NAN], [NAN, 1], [-1, 0]])
    true = np.array([[1, NAN], [1, NAN], [0, 1], [-1, 1]])
    got = published_label_metrics(generated, true)
    assert got["accuracy"] == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert got["precision"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["recall"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert np.isnan(published_label_metrics([[NAN]], [[NAN]])["f1"])


def test_nothing_affirmed_is_undefined_and_other_numbers_are_refused():
    got = label_metrics([[1.0]], [[0.0]], [1], resamples=5)
    assert all(v["value"] is None for v in got.values())
    with pytest.raises(ValueError, match="expected"):
        label_metrics([[2.0]], [[1.0]], [1])
    with pytest.raises(ValueError, match="shape"):
        label_metrics([[1.0, 0.0]], [[1.0]], [1])


def test_the_interval_holds_the_value():
    generated, true, patients = sample(4, 200)
    for value in label_metrics(generated, true, patients, resamples=300).values():
        assert value["low"] < value["value"] < value["high"]


def test_averaged_scores():
    rng = np.random.default_rng(0)
    targets, scores = (rng.random((50, 4)) < 0.4).astype(int), rng.random((50, 4))
    got = averaged_scores(scores, targets)
    assert got["auroc_micro"] == pytest.approx(roc_auc_score(targets.ravel(), scores.ravel()))
    assert got["auroc_macro"] == pytest.approx(np.mean([roc_auc_score(targets[:, i], scores[:, i]) for i in range(4)]))
    assert got["f1_micro"] == pytest.approx(f1_score(targets.ravel(), scores.ravel() >= 0.5))
