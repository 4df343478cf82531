"""What maps are measured by, against cases worked out by hand."""

import numpy as np
import pytest

from vlp_bench.metrics.grounding import (
    box_mask,
    component_boxes,
    contrast_to_noise,
    grounding_columns,
    grounding_entries,
    iou,
    ious,
    pointing,
    random_point_columns,
    scaled,
)


def test_a_pixel_belongs_to_a_box_by_its_centre():
    assert box_mask([[0.5, 0, 2.5, 1]], 2, 4).tolist() == [[True, True, False, False], [False] * 4]
    assert box_mask([[0.51, 0, 2.51, 1]], 1, 4).tolist() == [[False, True, True, False]]
    assert box_mask([[-5, -5, 99, 99]], 2, 2).all()


def test_two_boxes_are_one_place_and_no_box_is_none():
    both = box_mask([[0, 0, 2, 2], [1, 1, 3, 3]], 3, 3)
    assert both.sum() == 7
    assert not box_mask([], 3, 3).any()
    assert not box_mask(np.zeros((0, 4)), 3, 3).any()


def test_pointing_counts_the_last_pixel_inside_and_not_the_next():
    inside = box_mask([[1, 1, 3, 3]], 4, 4)[None].repeat(4, 0)
    maps = np.zeros((4, 4, 4))
    for n, (y, x) in enumerate([(1, 1), (2, 2), (2, 3), (0, 1)]):
        maps[n, y, x] = 1
    assert pointing(maps, inside).tolist() == [1, 1, 0, 0]


def test_ties_count_by_their_share():
    inside = box_mask([[0, 0, 2, 1]], 2, 4)[None]
    maps = np.array([[[3.0, 0, 0, 3], [0, 3, 0, 0]]])
    assert pointing(maps, inside)[0] == pytest.approx(1 / 3)
    # a flat map is a random point
    assert pointing(np.ones((1, 2, 4)), inside)[0] == pytest.approx(inside.mean())
    assert pointing(np.ones((1, 2, 4)), ~inside & False)[0] == 0


def test_iou_by_hand():
    inside = box_mask([[0, 0, 2, 2]], 3, 3)[None]
    found = box_mask([[1, 1, 3, 3]], 3, 3)[None]
    assert iou(found, inside)[0] == pytest.approx(1 / 7)
    assert iou(inside, inside)[0] == 1
    assert iou(found & False, inside & False)[0] == 0
    maps = np.array([[[0.9, 0.9, 0.4], [0.9, 0.6, 0.4], [0, 0, 0]]])
    assert ious(maps, inside, [0.3, 0.5, 0.8])[0] == pytest.approx([4 / 6, 1, 3 / 4])


def test_scaled_runs_from_nought_to_one():
    maps = np.array([[[2.0, 4], [3, 2]], [[7.0, 7], [7, 7]]])
    assert scaled(maps).tolist() == [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]]]


def test_contrast_to_noise_by_hand():
    inside = box_mask([[0, 0, 2, 1]], 2, 2)[None]
    maps = np.array([[[5.0, 7], [1, 1]]])
    # mean 6 and variance 1 inside, mean 1 and variance 0 outside
    assert contrast_to_noise(maps, inside)[0] == pytest.approx(5)
    assert contrast_to_noise(-maps, inside)[0] == pytest.approx(-5)
    assert contrast_to_noise(3 * maps + 2, inside)[0] == pytest.approx(5)
    assert contrast_to_noise(np.ones((1, 2, 2)), inside)[0] == 0
    assert np.isnan(contrast_to_noise(maps, inside | True)[0])


def test_boxes_around_what_is_connected():
    found = np.zeros((5, 6), bool)
    found[0, 0] = found[1, 1] = found[2, 1] = True  # by a corner
    found[4, 3:6] = found[3, 5] = True
    assert component_boxes(found).tolist() == [[3, 3, 6, 5], [0, 0, 2, 3]]
    assert component_boxes(found & False).shape == (0, 4)


def test_a_map_that_is_the_truth_reaches_everything():
    boxes = [[[1, 1, 4, 3]], [[0, 0, 2, 2], [4, 4, 6, 6]]]
    inside = np.stack([box_mask(b, 6, 6) for b in boxes])
    found = grounding_columns(inside.astype(float), inside, 0.5)
    for name in ("pointing", "iou", "box_iou", "box_iou@0.1", "box_iou@0.5"):
        assert found[name].tolist() == [1, 1], name


def test_a_box_is_drawn_around_a_part_of_the_place():
    inside = box_mask([[0, 0, 4, 4]], 8, 8)[None]
    found = grounding_columns(np.eye(8)[None] * inside, inside, 0.5)
    assert found["iou"][0] == pytest.approx(4 / 16)
    assert found["box_iou"][0] == 1


def test_entries_of_items_labels_and_their_mean():
    columns = {"pointing": np.array([1.0, 1, 1, 0, np.nan])}
    labels = np.array([0, 0, 0, 1, 1])
    found = grounding_entries(columns, labels, ["A", "B", "C"], ["p", "p", "q", "q", "r"], resamples=200)
    assert found["pointing"]["value"] == 0.75
    assert found["pointing"]["n"] == 4
    assert found["pointing/A"]["value"] == 1
    assert found["pointing/B"] == {"value": 0, "low": 0, "high": 0, "n": 1}
    assert found["pointing/C"]["value"] is None
    assert found["pointing/macro"]["value"] == 0.5
    # without q there is no B: the mean is that of A alone
    assert found["pointing/macro"]["high"] == 1
    assert found["pointing/macro"]["low"] == 0.5


def test_entries_draw_patients_and_not_items():
    rng = np.random.default_rng(0)
    values, patients = rng.random(60), np.repeat(np.arange(20), 3)
    copied = grounding_entries({"iou": np.repeat(values[::3], 3)}, np.zeros(60, int), ["A"], patients, 400)
    assert copied["iou/macro"] == pytest.approx(copied["iou"])
    assert copied["iou/A"] == pytest.approx(copied["iou"])
    alone = grounding_entries({"iou": values[::3]}, np.zeros(20, int), ["A"], np.arange(20), 400)
    assert copied["iou"]["low"] == pytest.approx(alone["iou"]["low"])


def test_a_random_point_lies_inside_by_the_share_of_the_boxes():
    found = random_point_columns(np.array([0.25, 0.5]))
    assert found["pointing"].tolist() == [0.25, 0.5]
    assert found["box_iou@0.3"].tolist() == [0, 1]
    assert found["cnr"].tolist() == [0, 0]
