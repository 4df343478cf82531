import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from vlp_bench.data.images import center_crop, to_square


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64))
def test_the_image_fills_the_longer_side_and_is_centred(height, width, size):
    square, geometry = to_square(np.full((height, width), 200, np.uint8), size)
    rows, columns = square.any(1), square.any(0)
    assert square.shape == (size, size)
    assert set(np.unique(square)) <= {0, 200}
    assert (columns.argmax(), rows.argmax()) == geometry.at
    assert max(rows.sum(), columns.sum()) == size
    assert 0 <= rows[::-1].argmax() - geometry.at[1] <= 1
    assert 0 <= columns[::-1].argmax() - geometry.at[0] <= 1


def test_boxes_and_masks_follow_the_pixels():
    mask = np.zeros((100, 60), np.uint8)
    mask[20:40, 10:30] = 1
    _, geometry = to_square(mask, 50)
    moved = geometry.mask(mask, 50)
    box = geometry.boxes(np.array([[10, 20, 30, 40]]))
    assert box.tolist() == [[15, 10, 25, 20]]
    assert geometry.original_boxes(box).tolist() == [[10, 20, 30, 40]]
    assert np.argwhere(moved).min(0).tolist() == [10, 15]
    assert (np.argwhere(moved).max(0) + 1).tolist() == [20, 25]
    with pytest.raises(ValueError, match="do not belong"):
        geometry.mask(mask.T, 50)


def test_the_middle_is_cut_as_torchvision_cuts_it():
    images = np.random.default_rng(0).integers(0, 256, (3, 10, 13), np.uint8)
    expected = torchvision.transforms.functional.center_crop(torch.from_numpy(images), [4])
    assert np.array_equal(center_crop(images, 4), expected.numpy())
