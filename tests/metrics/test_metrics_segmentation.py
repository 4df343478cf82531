import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from vlp_bench.metrics.segmentation import (
    Counts,
    choose_thresholds,
    count_pixels,
    image_dice,
    per_image,
    segmentation_metrics,
    trivial_segmentation,
)

LABELS = ["a", "b"]


def sample(seed=0, n=30):
    """Masks of which half are empty, predictions near them, some masks unknown; images of few patients."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((n, 2, 8, 8)) < 0.3) & (rng.random((n, 2, 1, 1)) < 0.5)
    predicted = (masks ^ (rng.random(masks.shape) < 0.1)) & (rng.random((n, 2, 1, 1)) < 0.8)
    return predicted, masks, rng.random((n, 2)) < 0.8, rng.integers(0, n // 3, n)


def values(metrics):
    return {name: m["value"] for name, m in metrics.items()}


def test_by_hand():
    masks = np.zeros((4, 1, 2, 2), bool)
    predicted = masks.copy()
    masks[0, 0, 0] = True  # two pixels, one found and one invented
    predicted[0, 0, :, 0] = True
    masks[1, 0] = True  # missed altogether
    predicted[3, 0, 1, 1] = True  # an alarm on a healthy image; the one before it is right
    m = segmentation_metrics(count_pixels(predicted, masks), np.arange(4), labels=["x"], resamples=0)
    expected = {"dice": (0.5 + 0 + 1 + 0) / 4, "dice_positive": 0.25, "iou": 1 / 8, "false_positive_rate": 0.5}
    assert values(m) == pytest.approx(expected | {f"{k}/x": v for k, v in expected.items()})
    assert [m[k]["n"] for k in expected] == [4, 2, 4, 2]


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_learn(seed):
    predicted, masks, known, patients = sample(seed)
    m = segmentation_metrics(count_pixels(predicted, masks, known), patients, labels=LABELS, resamples=50)
    for i, label in enumerate(LABELS):
        p, t = predicted[known[:, i], i], masks[known[:, i], i]
        dice = [f1_score(y.ravel(), x.ravel(), zero_division=1.0) for x, y in zip(p, t, strict=True)]
        positive = t.any((1, 2))
        assert m[f"dice/{label}"]["value"] == pytest.approx(np.mean(dice))
        assert m[f"dice_positive/{label}"]["value"] == pytest.approx(np.mean(np.array(dice)[positive]))
        assert m[f"iou/{label}"]["value"] == pytest.approx(jaccard_score(t.ravel(), p.ravel()))
        assert m[f"false_positive_rate/{label}"]["value"] == pytest.approx(p[~positive].any((1, 2)).mean())
        assert m[f"dice/{label}"]["n"] == known[:, i].sum()
    for name in ("dice", "dice_positive", "iou", "false_positive_rate"):
        assert m[name]["value"] == pytest.approx(np.mean([m[f"{name}/{label}"]["value"] for label in LABELS]))
        assert m[name]["low"] <= m[name]["value"] <= m[name]["high"]


def test_predicting_nothing_scores_the_share_of_empty_images():
    predicted, masks, known, patients = sample()
    counts = count_pixels(predicted, masks, known)
    trivial = trivial_segmentation(counts, patients, labels=LABELS, resamples=20)
    empty = [(~masks[known[:, i], i].any((1, 2))).mean() for i in range(2)]
    assert trivial["dice"]["value"] == pytest.approx(np.mean(empty))
    assert [trivial[k]["value"] for k in ("dice_positive", "iou", "false_positive_rate")] == [0, 0, 0]
    assert trivial.keys() == segmentation_metrics(counts, patients, labels=LABELS, resamples=0).keys()


def test_what_is_not_known_counts_nowhere():
    predicted, masks, known, patients = sample()
    before = segmentation_metrics(count_pixels(predicted, masks, known), patients, labels=LABELS, resamples=30)
    predicted[~known], masks[~known] = True, False
    assert segmentation_metrics(count_pixels(predicted, masks, known), patients, labels=LABELS, resamples=30) == before


def test_a_label_without_images_is_left_out():
    predicted, masks, known, patients = sample()
    known[:, 1] = False
    masks[:, 0] = True
    m = segmentation_metrics(count_pixels(predicted, masks, known), patients, labels=LABELS, resamples=10)
    assert m["dice/b"] == {"value": None, "low": None, "high": None, "n": 0}
    assert m["dice"]["value"] == m["dice/a"]["value"]
    assert m["false_positive_rate"]["value"] is None


@given(st.integers(0, 99))
def test_the_order_of_images_does_not_matter(seed):
    predicted, masks, known, patients = sample(seed)
    order = np.random.default_rng(seed).permutation(len(masks))
    one = segmentation_metrics(count_pixels(predicted, masks, known), patients, labels=LABELS, resamples=20)
    other = count_pixels(predicted[order], masks[order], known[order])
    again = segmentation_metrics(other, patients[order], labels=LABELS, resamples=20)
    for name, m in one.items():
        assert again[name] == pytest.approx(m, nan_ok=True)


def test_the_interval_is_over_patients():
    # one patient with all that is right, one with all that is wrong: resamples are 0, one half or 1
    masks = np.ones((20, 1, 2, 2), bool)
    predicted = masks & (np.arange(20) < 10)[:, None, None, None]
    m = segmentation_metrics(count_pixels(predicted, masks), np.arange(20) >= 10, labels=["x"], resamples=200)
    assert (m["dice"]["low"], m["dice"]["value"], m["dice"]["high"]) == (0, 0.5, 1)


def test_columns_per_image_have_the_metrics_as_means():
    predicted, masks, known, patients = sample()
    counts = count_pixels(predicted, masks, known)
    m, columns = segmentation_metrics(counts, patients, labels=LABELS, resamples=0), per_image(counts, LABELS)
    for name in m.keys() - {"iou", "iou/a", "iou/b"}:
        assert np.nanmean(columns[f"mean_{name}"]) == pytest.approx(m[name]["value"])
    assert np.isnan(columns["mean_dice/a"]).tolist() == (~known[:, 0]).tolist()
    pooled = np.nansum(columns["overlap_a"]) / np.nansum(
        columns["predicted_a"] + columns["true_a"] - columns["overlap_a"]
    )
    assert pooled == pytest.approx(m["iou/a"]["value"])


def test_the_threshold_is_that_of_the_best_value():
    masks = np.zeros((3, 2, 4, 4), bool)
    masks[:2, :, :2] = True
    levels = np.where(masks, 0.6, 0.4)
    levels[:, 1] = np.where(masks[:, 1], 0.3, 0.1)
    thresholds = np.array([0.05, 0.2, 0.5, 0.55, 0.9])
    at = [count_pixels(levels >= t, masks) for t in thresholds]
    counts = Counts(np.stack([c.overlap for c in at]), np.stack([c.predicted for c in at]), at[0].true)
    # of those that separate all (0.5 and 0.55 for the first label) the middle one
    assert thresholds[choose_thresholds(counts)].tolist() == [0.55, 0.2]
    chosen = counts.at(choose_thresholds(counts, "iou"))
    assert image_dice(chosen).min() == 1
    assert image_dice(counts[0]).min() == 0
    with pytest.raises(ValueError, match="false_positive_rate"):
        choose_thresholds(counts, "false_positive_rate")


def test_what_does_not_fit_is_refused():
    predicted, masks, _, patients = sample()
    with pytest.raises(ValueError, match="for masks of shape"):
        count_pixels(predicted[:, :1], masks)
    with pytest.raises(ValueError, match="2 labels"):
        segmentation_metrics(count_pixels(predicted, masks), patients[1:], labels=LABELS)
