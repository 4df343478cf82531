"""Drawing in unit coordinates: outlines and paths become soft-edged masks at any resolution."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vlp_bench.data.synthetic.anatomy import Points

# OpenCV's stubs promise arrays of no particular kind, hence Any.
Mask = NDArray[Any]  # uint8 (size, size), 0 to 255
Plane = NDArray[Any]  # float32 (size, size)

_SHIFT = 4  # sub-pixel bits of the corners given to OpenCV


class Canvas:
    """A square of ``size`` pixels onto which unit coordinates are drawn, after an affine ``pose`` (2, 3)."""

    def __init__(self, size: int, pose: NDArray[np.float64]) -> None:
        self.size = size
        # Pixel centres lie half a pixel inside the unit square's cells.
        self._turn = pose[:, :2].T * (size * (1 << _SHIFT))
        self._move = (pose[:, 2] * size - 0.5) * (1 << _SHIFT)

    def corners(self, points: Points) -> NDArray[np.int32]:
        """Place points (..., 2) on the pixel grid, as the fixed-point integers that OpenCV takes."""
        return np.rint(points @ self._turn + self._move).astype(np.int32)

    def _all_corners(self, shapes: Sequence[Points] | Points) -> list[NDArray[np.int32]]:
        """Place several shapes at once where they are one array (n, points, 2): most of the drawing is such."""
        return list(self.corners(shapes)) if isinstance(shapes, np.ndarray) else [self.corners(s) for s in shapes]

    def blank(self) -> Mask:
        """Give an empty mask (size, size)."""
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, outlines: Sequence[Points] | Points, value: int = 255, onto: Mask | None = None) -> Mask:
        """Fill closed outlines with anti-aliased edges."""
        mask = self.blank() if onto is None else onto
        for corners in self._all_corners(outlines):
            cv2.fillPoly(mask, [corners], value, cv2.LINE_AA, _SHIFT)
        return mask

    def trace(self, paths: Sequence[Points] | Points, width: float, value: int = 255, onto: Mask | None = None) -> Mask:
        """Draw open paths with a stroke of ``width`` (a fraction of the image side, at least one pixel)."""
        mask = self.blank() if onto is None else onto
        stroke = max(1, round(width * self.size))
        cv2.polylines(mask, self._all_corners(paths), False, value, stroke, cv2.LINE_AA, _SHIFT)
        return mask

    def soften(self, mask: Mask, sigma: float) -> Plane:
        """Blur a mask by ``sigma`` (a fraction of the image side) and scale it to [0, 1], as float32."""
        return np.multiply(self.blur(mask, sigma), np.float32(1.0 / 255.0), dtype=np.float32)

    def blur(self, mask: Mask, sigma: float) -> Mask:
        """Blur a mask; wide blurs work on a reduced image, where they cost little and look the same."""
        pixels = sigma * self.size
        if pixels < 0.3:
            return mask
        factor = int(pixels // 1.5)
        if factor < 2:
            reach = 2 * math.ceil(2.2 * pixels) + 1
            return cv2.GaussianBlur(mask, (reach, reach), pixels)
        small = cv2.resize(mask, (max(8, self.size // factor),) * 2, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), pixels / factor)
        return cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
