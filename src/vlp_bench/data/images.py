"""Pixels of radiographs as numpy arrays: the square in which they are stored, and the crops that networks see."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from vlp_bench.errors import UserError


@dataclass(frozen=True, slots=True)
class Geometry:
    """Which part of an image of `width` x `height` is stored, and where in the square it lies.

    Attributes:
        cut: the part, (x0, y0, x1, y1) in pixels of the image.
        drawn: (width, height) of the part in the square.
        at: (left, top) of the part in the square.
        width: of the image.
        height: of the image.
    """

    cut: tuple[float, float, float, float]
    drawn: tuple[int, int]
    at: tuple[int, int]
    width: int
    height: int

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the original image in stored pixels."""
        return (xyxy - self._corner) * self._scale + np.tile(self.at, 2)

    def original_boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in stored pixels back on the original image."""
        return (xyxy - np.tile(self.at, 2)) / self._scale + self._corner

    def enlarged(self, width: int, height: int) -> "Geometry":
        """The same place for the image of which this one is a reduced copy."""
        x, y = width / self.width, height / self.height
        x0, y0, x1, y1 = self.cut
        return replace(self, cut=(x0 * x, y0 * y, x1 * x, y1 * y), width=width, height=height)

    def picture(self, gray: np.ndarray, size: int) -> np.ndarray:
        """The square, uint8 (size, size), of uint8 pixels (height, width), reduced by area; black beside the image.

        Raises:
            ValueError: the pixels are of another size.
        """
        if gray.shape != (self.height, self.width):
            raise ValueError(f"{gray.shape} pixels do not belong to an image of {(self.height, self.width)}")
        x0, y0, x1, y1 = (round(v) for v in self.cut)
        (w, h), (left, top) = self.drawn, self.at
        square = np.zeros((size, size), np.uint8)
        square[top : top + h, left : left + w] = cv2.resize(gray[y0:y1, x0:x1], (w, h), interpolation=cv2.INTER_AREA)
        return square

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A binary mask (height, width) of the original image in the stored square, as uint8 0 or 1.

        Raises:
            ValueError: the mask is of another size.
        """
        return (self.picture((mask > 0).astype(np.uint8) * 255, size) > 127).astype(np.uint8)

    @property
    def _corner(self) -> np.ndarray:
        return np.tile(self.cut[:2], 2)

    @property
    def _scale(self) -> np.ndarray:
        x0, y0, x1, y1 = self.cut
        return np.tile([self.drawn[0] / (x1 - x0), self.drawn[1] / (y1 - y0)], 2)


def resize_and_pad(gray: np.ndarray, size: int) -> Geometry:
    """The longer side fills the square, the shorter is filled up with black on both sides (MGCA supplement A.1)."""
    return _padded((0, 0, gray.shape[1], gray.shape[0]), gray, size)


def shortest_side(gray: np.ndarray, size: int) -> Geometry:
    """The shorter side fills the square, of the longer its middle is kept (as torchvision's Resize and CenterCrop)."""
    height, width = gray.shape
    side = min(height, width)
    x, y = (width - side) // 2, (height - side) // 2
    return Geometry((x, y, x + side, y + side), (size, size), (0, 0), width, height)


def squash(gray: np.ndarray, size: int) -> Geometry:
    """Both sides fill the square; the aspect is lost (PRIOR section 8 of its code, MGCA detection and segmentation)."""
    height, width = gray.shape
    return Geometry((0, 0, width, height), (size, size), (0, 0), width, height)


def margin_cut(gray: np.ndarray, size: int) -> Geometry:
    """Black margins are cut away, then as `resize_and_pad` (MedViLL, figure 2).

    A margin is what lies beyond the last row or column that is brighter than 16 in more than one pixel of a hundred; a
    picture that is black everywhere keeps its size.
    """
    lit = gray > 16
    rows, columns = (np.flatnonzero(lit.mean(axis) > 0.01) for axis in (1, 0))
    if not (len(rows) and len(columns)):
        return resize_and_pad(gray, size)
    return _padded((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), gray, size)


def _padded(cut: tuple[int, int, int, int], gray: np.ndarray, size: int) -> Geometry:
    width, height = cut[2] - cut[0], cut[3] - cut[1]
    scale = size / max(height, width)
    h = size if height >= width else max(int(height * scale), 1)
    w = size if width > height else max(int(width * scale), 1)
    return Geometry(cut, (w, h), ((size - w) // 2, (size - h) // 2), gray.shape[1], gray.shape[0])


#: How an image comes into its square, by the name of the rule; the rule is part of the fingerprint of prepared data.
RULES: dict[str, Callable[[np.ndarray, int], Geometry]] = {
    rule.__name__: rule for rule in (resize_and_pad, shortest_side, squash, margin_cut)
}


def known_rule(name: str) -> Callable[[np.ndarray, int], Geometry]:
    """The rule of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RULES:
        raise UserError(f"data.image_rule={name}: expected one of {', '.join(RULES)}.")
    return RULES[name]


def to_square(gray: np.ndarray, size: int, rule: str = "resize_and_pad") -> tuple[np.ndarray, Geometry]:
    """An image in its stored square.

    Args:
        gray: uint8 (H, W).
        size: side of the square.
        rule: a name of `RULES`.

    Returns:
        uint8 (size, size), and where the image lies in it.

    Raises:
        UserError: an unknown rule.
    """
    geometry = known_rule(rule)(gray, size)
    return geometry.picture(gray, size), geometry


def center_crop(images: np.ndarray, size: int) -> np.ndarray:
    """Cut the middle square of `size` out of images (..., H, W); half a pixel falls as in torchvision."""
    top, left = (round((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]
