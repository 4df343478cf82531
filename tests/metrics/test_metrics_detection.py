import io
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from vlp_bench.metrics.bootstrap import Patients, patient_counts
from vlp_bench.metrics.detection import (
    IOUS,
    RECALLS,
    Boxes,
    average_precision,
    choose_thresholds,
    detection_metrics,
    false_positives,
    match,
    matches_from_table,
    matches_to_table,
    precision_statistic,
    trivial_detection,
)

LABELS = ["a", "b", "c"]


def boxes(*rows):
    """From (image, label, x, y, w, h[, score])."""
    table = np.array(rows, float).reshape(len(rows), -1)
    xyxy = np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:6]], 1)
    score = table[:, 6] if table.shape[1] > 6 else None
    return Boxes(table[:, 0].astype(int), table[:, 1].astype(int), xyxy, score)


def sample(seed=0, images=25, ties=False):
    """Truth in most images, detections near it, duplicates, inventions; label c has no truth; none in image 0."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for i in range(1, images):
        for _ in range(rng.integers(0, 4)):
            box, label = np.array([*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]), rng.integers(0, 2)
            truth.append([i, label, *box])
            for _ in range(rng.integers(0, 3)):
                near = box + rng.normal(0, 3, 4)
                found.append([i, label, *near[:2], *np.maximum(near[2:], 1), rng.random()])
        for _ in range(rng.integers(0, 3)):
            found.append([i, rng.integers(0, 3), *rng.uniform(0, 60, 2), *rng.uniform(5, 40, 2), rng.random()])
    found = np.array(found)
    if ties:
        found[:, 6] = np.round(found[:, 6] * 4) / 4
    return boxes(*truth), boxes(*found), rng.integers(0, images // 2, images)


def own_number(truth, found, images, ious):
    """pycocotools' own mean average precision at some overlaps, by label."""

    def side(b):
        coco = COCO()
        sizes = b.xyxy[:, 2:] - b.xyxy[:, :2]
        score = np.zeros(len(b.image)) if b.score is None else b.score
        notes = [
            {"id": n + 1, "image_id": int(b.image[n]), "category_id": int(b.label[n]), "iscrowd": 0,
             "bbox": [*b.xyxy[n, :2], *sizes[n]], "area": sizes[n].prod(), "score": score[n]}
            for n in range(len(b.image))
        ]  # fmt: skip
        kinds = [{"id": i} for i in range(len(LABELS))]
        coco.dataset = {"images": [{"id": i} for i in range(images)], "categories": kinds, "annotations": notes}
        coco.createIndex()
        return coco

    with redirect_stdout(io.StringIO()):
        judge = COCOeval(side(truth), side(found), "bbox")
        judge.params.iouThrs = ious
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 2]  # overlaps, recalls, labels; any area, 100 boxes
    return np.where(precision.min((0, 1)) < 0, np.nan, precision.mean((0, 1)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_is_the_own_number_of_pycocotools(seed, ties):
    truth, found, patients = sample(seed, ties=ties)
    m = detection_metrics(match(truth, found, 25, LABELS), patients, resamples=0)
    for name, ious in {"map": IOUS[2:], "ap50": np.array([0.5]), "map_40_75": IOUS[:8]}.items():
        expected = own_number(truth, found, 25, ious)
        assert np.isnan(expected[2])
        assert m[f"{name}/c"]["value"] is None
        assert [m[f"{name}/{n}"]["value"] for n in "ab"] == pytest.approx(expected[:2], abs=1e-12)
        assert m[name]["value"] == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_agrees_with_torchmetrics():
    truth, found, patients = sample(7)
    # its own recalls are rounded to single precision
    judge = MeanAveragePrecision(iou_thresholds=IOUS[:8].tolist(), rec_thresholds=RECALLS.tolist())

    def of(b, image):
        here = b.image == image
        said = {"boxes": torch.tensor(b.xyxy[here]).float(), "labels": torch.tensor(b.label[here])}
        return said if b.score is None else said | {"scores": torch.tensor(b.score[here]).float()}

    judge.update([of(found, i) for i in range(25)], [of(truth, i) for i in range(25)])
    m = detection_metrics(match(truth, found, 25, LABELS), patients, resamples=0)
    assert m["map_40_75"]["value"] == pytest.approx(float(judge.compute()["map"]), abs=1e-5)


def test_weights_count_an_image_as_often():
    truth, found, _ = sample(3)
    matches = match(truth, found, 25, LABELS)
    weights = np.random.default_rng(0).integers(0, 4, (5, 25))
    for row in weights:
        copies = np.repeat(np.arange(25), row)
        parts = [[b.of(b.image == i) for i in copies] for b in (truth, found)]

        def joined(boxes_of):
            image = np.concatenate([np.full(len(b.image), n) for n, b in enumerate(boxes_of)])
            score = None if boxes_of[0].score is None else np.concatenate([b.score for b in boxes_of])
            label = np.concatenate([b.label for b in boxes_of])
            return Boxes(image, label, np.concatenate([b.xyxy for b in boxes_of]), score)

        again = match(joined(parts[0]), joined(parts[1]), len(copies), LABELS)
        for label in "ab":
            once = average_precision(again[label], np.ones((1, len(copies)), int))
            np.testing.assert_allclose(average_precision(matches[label], row[None]), once, atol=1e-12)


def test_by_hand():
    truth = boxes([0, 0, 0, 0, 10, 10], [1, 0, 0, 0, 10, 10])
    found = boxes(
        [0, 0, 0, 0, 10, 10, 0.9],  # found
        [0, 0, 0, 0, 10, 10, 0.8],  # the same again: a false alarm
        [1, 0, 0, 0, 10, 6, 0.7],  # an overlap of .6
        [2, 0, 0, 0, 10, 10, 0.6],  # on an image without the finding
    )
    m = detection_metrics(match(truth, found, 4, ["x"]), np.arange(4), {"x": 0.6}, resamples=0)
    # precision 1 up to a recall of one half, 2 / 3 beyond it where .6 suffices
    half, whole = 51 / 101, 51 / 101 + 50 / 101 * 2 / 3
    assert m["ap50"]["value"] == pytest.approx(whole)
    assert m["map"]["value"] == pytest.approx((3 * whole + 7 * half) / 10)
    assert m["map_40_75"]["value"] == pytest.approx((5 * whole + 3 * half) / 8)
    assert m["false_positives"] == {"value": 0.5, "low": None, "high": None, "n": 2}


def test_missing_everything_is_nought_and_without_truth_there_is_no_number():
    truth = boxes([0, 0, 0, 0, 10, 10])
    m = detection_metrics(match(truth, Boxes.none(), 3, LABELS[:2]), np.arange(3), {"a": 1, "b": 1}, resamples=20)
    assert m["map"]["value"] == m["map/a"]["value"] == 0
    assert m["map/b"] == {"value": None, "low": None, "high": None, "n": 3}
    assert m["false_positives"]["value"] == 0
    nobody = detection_metrics(match(Boxes.none(), Boxes.none(), 3, LABELS), np.arange(3), resamples=5)
    assert nobody["map"]["value"] is None


def test_skipping_forgives_alarms_on_healthy_images_and_images_where_nothing_was_found():
    truth = boxes([0, 0, 0, 0, 10, 10], [1, 0, 0, 0, 10, 10])
    found = boxes([0, 0, 0, 0, 10, 10, 0.5], [2, 0, 0, 0, 10, 10, 0.9])
    m = detection_metrics(match(truth, found, 3, ["x"]), np.arange(3), skipping=True, resamples=0)
    assert m["map_40_75_skipping"]["value"] == pytest.approx(1)
    assert m["map_40_75"]["value"] == pytest.approx(51 / 101 / 2)
    assert "map_40_75_skipping" not in detection_metrics(match(truth, found, 3, ["x"]), np.arange(3), resamples=0)


def test_what_is_not_known_counts_nowhere():
    truth, found, patients = sample(2)
    known = np.random.default_rng(0).random((25, 3)) < 0.6
    some = detection_metrics(match(truth, found, 25, LABELS, known), patients, dict.fromkeys(LABELS, 0.3), resamples=20)
    kept = [b.of(known[b.image, b.label]) for b in (truth, found)]
    assert some["map/a"]["value"] == pytest.approx(own_number(*kept, 25, IOUS[2:])[0])
    assert some["map/a"]["n"] == known[:, 0].sum()
    count, negative = false_positives(match(truth, found, 25, LABELS, known)["c"], 0.0)
    assert negative.sum() == known[:, 2].sum()
    assert count.sum() == (known[found.image, 2] & (found.label == 2)).sum()


def test_the_interval_is_over_patients_and_repeatable():
    truth, found, patients = sample(5)
    matches = match(truth, found, 25, LABELS)
    one, two = (detection_metrics(matches, patients, resamples=200) for _ in range(2))
    assert one == two
    assert one["map"]["low"] < one["map"]["value"] < one["map"]["high"]
    alone = detection_metrics(matches, np.zeros(25), resamples=20)
    assert alone["map"]["low"] == alone["map"]["high"] == pytest.approx(alone["map"]["value"])


def test_two_backbones_can_be_compared_under_the_same_resamples():
    truth, found, patients = sample(5)
    worse = Boxes(found.image, found.label, found.xyxy, np.random.default_rng(0).permutation(found.score))
    groups = Patients.of(patients)
    one, other = (precision_statistic(match(truth, b, 25, LABELS), groups, "ap50") for b in (found, worse))
    once = np.ones((1, groups.count), np.int32)
    metrics = detection_metrics(match(truth, found, 25, LABELS), patients, resamples=200)
    assert one(once)[0] == pytest.approx(metrics["ap50"]["value"])
    drawn = np.concatenate([counts for _, counts in patient_counts(groups.count, 200, 0)])
    low, high = np.percentile(one(drawn), [2.5, 97.5])
    assert (low, high) == pytest.approx((metrics["ap50"]["low"], metrics["ap50"]["high"]))
    np.testing.assert_array_equal(one(drawn) - one(drawn), 0)
    assert (one(drawn) - other(drawn)).std() > 0


def test_the_threshold_has_the_best_f1():
    truth, found, _ = sample(1, ties=True)
    matches = match(truth, found, 25, LABELS)
    chosen = choose_thresholds(matches)
    assert chosen["c"] == np.inf
    for label in "ab":
        m = matches[label]

        def f1(threshold, m=m):
            called = m.score >= threshold
            return 2 * (m.hit[2] & called).sum() / (called.sum() + m.truths.sum())

        assert f1(chosen[label]) == max(map(f1, m.score))


def test_the_floor_is_the_better_of_nothing_and_the_mean_box():
    truth = boxes([0, 0, 10, 10, 20, 20], [2, 0, 12, 10, 20, 20])
    train = boxes([5, 0, 9, 9, 20, 20], [6, 0, 11, 11, 20, 20])
    known = np.ones((3, 2), bool)
    floor, which = trivial_detection(train, truth, known, np.arange(3), labels=LABELS[:2], resamples=10)
    assert which == "mean box"
    assert floor["ap50"]["value"] == pytest.approx(51 / 101 + 50 / 101 * 2 / 3)
    assert floor["false_positives/a"]["value"] == 1
    assert floor["map/b"]["value"] is None
    far = boxes([5, 0, 70, 70, 4, 4])
    floor, which = trivial_detection(far, truth, known, np.arange(3), labels=LABELS[:2], resamples=10)
    assert which == "nothing"
    assert floor["map"]["value"] == 0
    assert floor["false_positives"]["value"] == 0
    assert trivial_detection(Boxes.none(), truth, known, np.arange(3), labels=LABELS[:2], resamples=0)[1] == "nothing"


def test_matches_survive_a_file(tmp_path):
    truth, found, patients = sample(4)
    known = np.random.default_rng(1).random((25, 3)) < 0.8
    matches = match(truth, found, 25, LABELS, known)
    matches_to_table(matches).to_parquet(tmp_path / "p.parquet")
    table = pd.read_parquet(tmp_path / "p.parquet")
    limits = dict.fromkeys(LABELS, 0.4)
    before = detection_metrics(matches, patients, limits, skipping=True, resamples=50)
    assert detection_metrics(matches_from_table(table), patients, limits, skipping=True, resamples=50) == before
    with pytest.raises(ValueError, match="no columns"):
        matches_from_table(table[["truths_a"]])


def test_what_does_not_fit_is_refused():
    truth, found, patients = sample()
    with pytest.raises(ValueError, match="score"):
        match(truth, truth, 25, LABELS)
    with pytest.raises(ValueError, match="right edge"):
        match(boxes([0, 0, 5, 5, 0, 3]), found, 25, LABELS)
    with pytest.raises(ValueError, match="24 patients"):
        detection_metrics(match(truth, found, 25, LABELS), patients[1:])
